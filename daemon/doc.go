// Package daemon makes a daemon of a dispatcher: configuration, log, signals, and
// word to the service manager.
//
//	func main() { daemon.Main(daemon.WithCondition(mine)) }
//
// [Main] is all of mainzd. [Command] is the same daemon as one command of a larger
// program, as mainz daemon is.
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
// the next start, which is a warm one. The second of these signals ends it at once.
// Killed, it loses nothing either. With --wipe it starts from an empty segment.
//
// SIGHUP reads the configuration again, takes the log level from it, and says what
// else has changed and needs a restart. SIGPIPE is ignored.
//
// A service manager that listens (NOTIFY_SOCKET) is told when the node is open, when
// it reads the configuration again, and when it stops. If it wants signs of life
// (WATCHDOG_USEC), the dispatcher's loop itself gives them: a loop that hangs gives
// none.
//
// # The log
//
// It goes to standard error. Whoever reads that may be slow, stopped, or gone: nobody
// waits for him but a goroutine that does nothing else. What does not fit into 1,024
// lines and 1 MiB is dropped, and the log says how many lines that were. A message
// that comes more than 20 times in 5 s is left out for the rest of them, and counted.
//
// Exit codes are those of the command line: 0, 1 failure, 2 usage, 3 no segment,
// 4 permission, 5 incompatible, 9 another one runs, 10 no space.
package daemon
