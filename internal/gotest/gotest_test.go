package main

import (
	"reflect"
	"strings"
	"testing"
)

func TestGroups(t *testing.T) {
	got := groups([]string{"-v", "a", "--", "--", "b"})
	if want := [][]string{{"-v", "a"}, {"b"}}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestSkipsAreChecked(t *testing.T) {
	for _, bad := range []string{"test ./ltdb TestX", "test ./ltdb Test[ a reason", "gate root",
		"./ltdb TestX a reason"} {
		if _, err := parseSkips("skips", "# fine\n"+bad); err == nil || !strings.HasPrefix(err.Error(), "skips:2: ") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
