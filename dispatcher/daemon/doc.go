// Package daemon makes a daemon of a dispatcher: configuration, log, signals, and
// word to the service manager.
//
//	func main() { daemon.Main(daemon.WithCondition(mine)) }
//
// # Configuration
//
// Each value comes from the first of: a flag, an environment variable, the file,
// the default. The file is TOML, /etc/mainz/mainzd.toml unless --config or
// MAINZ_CONFIG say otherwise; a name in it that nobody knows is an error with its
// line. Keys, flags (--max-value) and variables (MAINZ_MAX_VALUE) have the same
// names. Settings lists them with their values and where these come from.
//
// # What it does
//
// It warns and goes on where it can, and says what to do where it can't. SIGTERM
// and SIGINT end it in order: what runs is answered, and the segment stays for
// the next start, which is a warm one. Killed, it loses nothing either. With
// --wipe it starts from an empty segment.
//
// A service manager that listens (NOTIFY_SOCKET) is told when the node is open
// and when it stops.
//
// Exit codes are those of the command line: 0, 1 failure, 2 usage, 3 no segment,
// 4 permission, 5 incompatible, 9 another one runs, 10 no space.
package daemon
