// Command mainzd is the dispatcher of a node: it makes the node's segment, lets
// clients in, and serves what they can't do by themselves. It is the name that a
// service uses; mainz daemon is the same. Its options are those of package daemon;
// mainzd --help lists them. Who needs condition functions of
// his own writes such a program himself: daemon.Main(daemon.WithCondition(…)).
package main
