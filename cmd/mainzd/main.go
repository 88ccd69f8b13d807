package main

import "github.com/mainzdb/mainz/dispatcher/daemon"

func main() { daemon.Main() }
