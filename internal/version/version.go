package version

import (
	"io"
	"runtime"
	"runtime/debug"

	"github.com/mainzdb/mainz/internal/table"
)

// Info is what a program knows of its making.
type Info struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"`
	Modified bool   `json:"modified,omitempty"` // the working tree was not clean
	Go       string `json:"go"`
	OS       string `json:"os"`
	Arch     string `json:"arch"`
}

// Read returns what is known. set is what the Makefile has written into the
// program's own variable, "" if go install has built it: then the module's version
// counts.
func Read(set string) Info {
	v := Info{Version: set, Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		info = new(debug.BuildInfo)
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			v.Revision = s.Value
		case "vcs.modified":
			v.Modified = s.Value == "true"
		}
	}
	if v.Version == "" {
		v.Version = info.Main.Version
	}
	if v.Version == "" {
		v.Version = "(devel)"
	}
	return v
}

// Print writes it for people; name is the program's.
func (v Info) Print(w io.Writer, name string) error {
	t := table.New(w)
	t.Row(name, "%s", v.Version)
	if v.Revision != "" {
		t.Row("revision", "%s", v.Revision)
	}
	t.Row("built with", "%s for %s/%s", v.Go, v.OS, v.Arch)
	return t.Flush()
}
