package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/bits"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
	"github.com/spf13/pflag"

	"github.com/mainzdb/mainz/ltdb"
	"github.com/mainzdb/mainz/ring"
)

// DefaultConfig is the file that is read if no other is named, and if it is there.
const DefaultConfig = "/etc/mainz/mainzd.toml"

// Config is what a daemon can be told.
type Config struct {
	Dir       string `toml:"dir"`
	Cluster   string `toml:"cluster"`
	Group     string `toml:"group"`
	Size      string `toml:"size"`
	Slots     int    `toml:"slots"`
	MaxValue  string `toml:"max_value"`
	Databases int    `toml:"databases"`
	HugePages string `toml:"huge_pages"`
	Idle      string `toml:"idle"`
	Stall     string `toml:"stall_limit"`
	LogLevel  string `toml:"log_level"`
	LogFormat string `toml:"log_format"`
}

func defaults() Config {
	return Config{Dir: "/dev/shm/mainz/default/0/v1", Cluster: "default", Size: "256MiB", Slots: 256,
		MaxValue: "1MiB", Databases: 16,
		HugePages: "auto", Idle: "adaptive", Stall: "10s", LogLevel: "info", LogFormat: "text"}
}

// Setting is one value and where it comes from.
type Setting struct {
	Name   string `json:"name"`
	Value  string `json:"value"`
	Source string `json:"source"` // default, the file's path, the variable's or the flag's name
	Help   string `json:"help"`
	// InForce is what the node's segment was made with, if that is another value:
	// then Value takes effect with a new segment only.
	InForce string `json:"in_force,omitempty"`
}

// field is one setting of a Config.
type field struct {
	name, help string
	get        func(c *Config) string
	set        func(c *Config, v string) error
}

func text(name, help string, at func(c *Config) *string) field {
	return field{name, help, func(c *Config) string { return *at(c) }, func(c *Config, v string) error {
		*at(c) = v
		return nil
	}}
}

func number(name, help string, at func(c *Config) *int) field {
	return field{name, help, func(c *Config) string { return strconv.Itoa(*at(c)) }, func(c *Config, v string) error {
		n, err := strconv.Atoi(v)
		if err != nil {
			return fmt.Errorf("%q is no number", v)
		}
		*at(c) = n
		return nil
	}}
}

var fields = []field{
	text("dir", "`directory` of the node, on a ramdisk", func(c *Config) *string { return &c.Dir }),
	text("cluster", "`name` of the cluster", func(c *Config) *string { return &c.Cluster }),
	text("group", "`group` whose members may attach; empty: the daemon's own",
		func(c *Config) *string { return &c.Group }),
	text("size", "`size` of a new segment", func(c *Config) *string { return &c.Size }),
	number("slots", "`number` of clients at a time, for a new segment", func(c *Config) *int { return &c.Slots }),
	text("max_value", "longest value, a `size`, for a new segment", func(c *Config) *string { return &c.MaxValue }),
	number("databases", "`number` of databases at most, for a new segment",
		func(c *Config) *int { return &c.Databases }),
	text("huge_pages", "pages of 2 MiB for a new segment: `auto`, never or require",
		func(c *Config) *string { return &c.HugePages }),
	text("idle", "what to do when there is nothing to do: busy, `adaptive` or sleep",
		func(c *Config) *string { return &c.Idle }),
	text("stall_limit", "for how long a client may be stopped in the middle of a call before it is killed, a `time`; 0: for ever, as when debugging", func(c *Config) *string {
		return &c.Stall
	}),
	text("log_level", "`level`: debug, info, warn or error", func(c *Config) *string { return &c.LogLevel }),
	text("log_format", "`format` of the log on standard error: text or json",
		func(c *Config) *string { return &c.LogFormat }),
}

func (f *field) flagName() string { return strings.ReplaceAll(f.name, "_", "-") }
func (f *field) variable() string { return "MAINZ_" + strings.ToUpper(f.name) }

// errUsage: the arguments or the configuration are at fault.
var errUsage = errors.New("usage")

// flags are what the command line can say.
type flags struct {
	file    string
	wipe    bool
	version bool
	given   map[string]string // a setting's name to its text
}

// add gives the set these flags.
func (f *flags) add(to *pflag.FlagSet) {
	f.given = map[string]string{}
	to.SortFlags = false
	was := defaults()
	for i := range fields {
		set := &fields[i]
		to.Func(set.flagName(), set.help+" (default "+strconv.Quote(set.get(&was))+", or $"+set.variable()+")",
			func(v string) error {
				f.given[set.name] = v
				return nil
			})
	}
	to.StringVar(&f.file, "config", "", "TOML `file`; default "+DefaultConfig+" if that is there")
	to.BoolVar(&f.wipe, "wipe", false, "start from an empty segment")
	to.BoolVar(&f.version, "version", false, "print the version and end")
}

// parsed is a configuration with its sources.
type parsed struct {
	Config
	wipe   bool
	source map[string]string

	flags *flags // what resolve got, for the next time
	env   func(string) (string, bool)
}

// parse reads a command line, and resolves what it says.
func parse(name string, args []string, env func(string) (string, bool)) (*parsed, error) {
	f := new(flags)
	set := pflag.NewFlagSet(name, pflag.ContinueOnError)
	set.Usage = func() {}
	f.add(set)
	if err := set.Parse(args); err != nil {
		return nil, usageError(err, name)
	}
	if set.NArg() > 0 {
		return nil, usageError(noArguments(set.Args()), name)
	}
	return f.resolve(env)
}

// noArguments is the error for arguments that are no flags.
func noArguments(args []string) error {
	if len(args) == 0 {
		return nil
	}
	return fmt.Errorf("argument %q: there are only flags", args[0])
}

func usageError(err error, name string) error {
	return fmt.Errorf("%w: %w; see %s --help", errUsage, err, name)
}

// resolve reads the file and the environment besides the flags, and checks the values.
func (f *flags) resolve(env func(string) (string, bool)) (*parsed, error) {
	p := &parsed{Config: defaults(), wipe: f.wipe, source: map[string]string{}, flags: f, env: env}
	path, must := f.file, f.file != ""
	if !must {
		if path, must = env("MAINZ_CONFIG"); !must {
			path = DefaultConfig
		}
	}
	if err := p.readFile(path, must); err != nil {
		return nil, err
	}
	for i := range fields {
		field := &fields[i]
		source := field.variable()
		v, ok := env(source)
		if g, is := f.given[field.name]; is {
			v, ok, source = g, true, "--"+field.flagName()
		}
		if !ok {
			continue
		}
		if err := field.set(&p.Config, v); err != nil {
			return nil, fmt.Errorf("%w: %s: %w", errUsage, source, err)
		}
		p.source[field.name] = source
	}
	if p.Dir == "" {
		source := p.source["dir"]
		return nil, fmt.Errorf("%w: %s: the name of the directory is empty; name the node's directory, or leave the setting out", errUsage, source)
	}
	if _, err := p.store(); err != nil {
		return nil, err
	}
	if _, err := ring.ParseStrategy(p.Idle); err != nil {
		return nil, fmt.Errorf("%w: idle: %w", errUsage, err)
	}
	if _, err := p.stallLimit(); err != nil {
		return nil, err
	}
	if _, _, err := p.logger(io.Discard); err != nil {
		return nil, err
	}
	return p, nil
}

func (p *parsed) readFile(path string, must bool) error {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && !must {
		return nil
	}
	if err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	dec := toml.NewDecoder(bytes.NewReader(b)).DisallowUnknownFields()
	if err := dec.Decode(&p.Config); err != nil {
		var strict *toml.StrictMissingError
		if errors.As(err, &strict) {
			return fmt.Errorf("%w: %s: unknown setting:\n%s", errUsage, path, strict.String())
		}
		return fmt.Errorf("%w: %s: %w", errUsage, path, err)
	}
	var set map[string]any
	if err := toml.Unmarshal(b, &set); err != nil {
		return fmt.Errorf("%w: %s: %w", errUsage, path, err)
	}
	for name := range set {
		p.source[name] = path
	}
	return nil
}

// store is the configuration as the store wants it.
func (c *Config) store() (ltdb.Config, error) {
	s := ltdb.Config{Slots: c.Slots, Databases: c.Databases, Cluster: c.Cluster, Group: c.Group}
	var err error
	if s.Size, err = parseSize(c.Size); err != nil {
		return s, fmt.Errorf("%w: size: %w", errUsage, err)
	}
	n, err := parseSize(c.MaxValue)
	if err != nil || n > 1<<30 {
		return s, fmt.Errorf("%w: max_value: %q is no size that a value can have", errUsage, c.MaxValue)
	}
	s.MaxValue = int(n)
	switch c.HugePages {
	case "auto":
		s.HugePages = ltdb.HugeAuto
	case "never":
		s.HugePages = ltdb.HugeNever
	case "require":
		s.HugePages = ltdb.HugeRequire
	default:
		return s, fmt.Errorf("%w: huge_pages: %q: there are auto, never and require", errUsage, c.HugePages)
	}
	return s, nil
}

// level is the least that is logged.
func (c *Config) level() (level slog.Level, err error) {
	if err := level.UnmarshalText([]byte(c.LogLevel)); err != nil {
		return 0, fmt.Errorf("%w: log_level: %q: there are debug, info, warn and error", errUsage, c.LogLevel)
	}
	return level, nil
}

// logger writes to w, which is not to wait, what is at least of the level.
// stallLimit is the limit as the dispatcher wants it, negative for none.
func (c *Config) stallLimit() (time.Duration, error) {
	d, err := time.ParseDuration(c.Stall)
	switch {
	case err != nil || d < 0 || d > 0 && d < 100*time.Millisecond:
		return 0, fmt.Errorf("%w: stall_limit: %q is no time of 100ms or longer, like 10s, nor 0", errUsage, c.Stall)
	case d == 0:
		return -1, nil
	}
	return d, nil
}

func (c *Config) logger(w io.Writer) (*slog.Logger, *slog.LevelVar, error) {
	at, err := c.level()
	if err != nil {
		return nil, nil, err
	}
	level := new(slog.LevelVar)
	level.Set(at)
	h, err := c.handler(w, level)
	if err != nil {
		return nil, nil, err
	}
	return slog.New(newLimiter(h)), level, nil
}

func (c *Config) handler(w io.Writer, level slog.Leveler) (slog.Handler, error) {
	o := &slog.HandlerOptions{Level: level}
	switch c.LogFormat {
	case "text":
		return slog.NewTextHandler(w, o), nil
	case "json":
		return slog.NewJSONHandler(w, o), nil
	}
	return nil, fmt.Errorf("%w: log_format: %q: there are text and json", errUsage, c.LogFormat)
}

// note makes the line that says how many lines of the log are missing, in the log's
// format.
func (c *Config) note() func(uint64) []byte {
	return func(n uint64) []byte {
		var b bytes.Buffer
		if h, err := c.handler(&b, slog.LevelWarn); err == nil {
			slog.New(h).Warn("lines of the log were dropped; their reader was too slow, or gone", "lines", n)
		}
		return b.Bytes()
	}
}

// parseSize reads bytes, with KiB, MiB or GiB behind them if they are many.
func parseSize(s string) (uint64, error) {
	n, unit := strings.TrimSpace(s), uint64(1)
	for suffix, u := range map[string]uint64{"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30} {
		if t, ok := strings.CutSuffix(n, suffix); ok {
			n, unit = strings.TrimSpace(t), u
			break
		}
	}
	v, err := strconv.ParseUint(n, 10, 64)
	if hi, lo := bits.Mul64(v, unit); err == nil && hi == 0 {
		return lo, nil
	}
	return 0, fmt.Errorf("%q is no size; write bytes, or a number with KiB, MiB or GiB", s)
}

func (p *parsed) settings() []Setting {
	var all []Setting
	for i := range fields {
		f := &fields[i]
		source := p.source[f.name]
		if source == "" {
			source = "default"
		}
		all = append(all, Setting{Name: f.name, Value: f.get(&p.Config), Source: source,
			Help: strings.ReplaceAll(f.help, "`", "")})
	}
	return all
}

// Settings returns what a daemon that is started with these flags in this
// environment would go by, where each value comes from, and what the segment that is
// there has instead.
func Settings(args []string) ([]Setting, error) {
	p, err := parse("mainzd", args, os.LookupEnv)
	if err != nil {
		return nil, err
	}
	all := p.settings()
	p.inForce(all)
	return all, nil
}

// inForce looks which settings the node's segment does not have, if there is one that
// can be looked at.
func (p *parsed) inForce(all []Setting) {
	cfg, err := p.store()
	if err != nil {
		return
	}
	s, err := ltdb.Open(context.Background(), p.Dir, ltdb.Options{ReadOnly: true})
	if err != nil {
		return
	}
	defer s.Close()
	for _, d := range cfg.Differences(s.InForce()) {
		for i := range all {
			if all[i].Name == d.Setting {
				all[i].InForce = d.InForce
			}
		}
	}
}
