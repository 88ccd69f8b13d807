package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"unicode"

	"github.com/mainzdb/mainz/bench"
	"github.com/mainzdb/mainz/bench/demo"
	"github.com/mainzdb/mainz/daemon"
	build "github.com/mainzdb/mainz/internal/version"
	"github.com/mainzdb/mainz/ltdb"
	"github.com/mainzdb/mainz/protocol"
	"github.com/mainzdb/mainz/protocol/sim"
	"github.com/mainzdb/mainz/transport/xdp"
)

// What commands print with -o json. A type that is missing here is one that nobody
// has looked at.
var printed = []any{
	nodeStatus{}, clientStat{}, lockInfo{}, ltdb.Report{}, databaseSize{}, daemon.Setting{}, record{}, netResult{},
	build.Info{}, bench.Report{}, demo.Result{}, xdp.Examination{}, sim.Result{}, protocol.Plant{}, simResult{},
}

// All names are in lower case with underscores, and none is Go's own.
func TestJSONNames(t *testing.T) {
	good := regexp.MustCompile(`^[a-z][a-z0-9]*(_[a-z0-9]+)*$`)
	seen := map[reflect.Type]bool{}
	var walk func(at string, of reflect.Type)
	walk = func(at string, of reflect.Type) {
		switch of.Kind() {
		case reflect.Pointer, reflect.Slice, reflect.Array, reflect.Map:
			walk(at, of.Elem())
			return
		case reflect.Struct:
		default:
			return
		}
		if seen[of] {
			return
		}
		seen[of] = true
		names := map[string]bool{}
		for i := range of.NumField() {
			f := of.Field(i)
			tag := f.Tag.Get("json")
			name, _, _ := strings.Cut(tag, ",")
			switch {
			case f.Anonymous && tag == "":
				walk(at, f.Type)
				continue
			case !f.IsExported() || tag == "-":
				continue
			case !good.MatchString(name):
				t.Errorf("%s.%s is called %q", at, f.Name, name)
			case names[name]:
				t.Errorf("%s: two fields are called %q", at, name)
			}
			names[name] = true
			walk(at+"."+f.Name, f.Type)
		}
	}
	for _, v := range printed {
		of := reflect.TypeOf(v)
		walk(of.String(), of)
	}
}

// What is not printable is escaped, and means the same.
func TestJSONPrintable(t *testing.T) {
	want := map[string]string{"a\u009b2J\x1b\x7f\u202e": "größe \U000e0001 \u0085"}
	var out bytes.Buffer
	if err := newEncoder(&out).Encode(want); err != nil {
		t.Fatal(err)
	}
	for _, r := range strings.TrimSuffix(out.String(), "\n") {
		if !unicode.IsPrint(r) {
			t.Errorf("%q has %q", &out, r)
		}
	}
	var got map[string]string
	if err := json.Unmarshal(out.Bytes(), &got); err != nil || !reflect.DeepEqual(got, want) ||
		!strings.Contains(out.String(), "größe") {
		t.Errorf("%q, %v, want %q", got, err, want)
	}
	// Nobody prints JSON without that.
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if f != "json.go" && !strings.HasSuffix(f, "_test.go") && bytes.Contains(b, []byte("json.NewEncoder")) {
			t.Errorf("%s prints JSON by itself", f)
		}
	}
}
