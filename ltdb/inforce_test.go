package ltdb

import (
	"reflect"
	"testing"
)

func TestDifferences(t *testing.T) {
	s := heap(t, Config{Size: 8 << 20, Slots: 5, MaxValue: 4096, Databases: 3, Cluster: "prod"})
	in := s.InForce()
	if d := (Config{Size: 8<<20 - 100, Slots: 5, MaxValue: 4096, Databases: 3,
		Cluster: "prod"}).Differences(in); d != nil {
		t.Errorf("what it was made with differs: %+v", d)
	}
	in.Group = "77"
	got := Config{Size: 1 << 30, Slots: 6, MaxValue: 5000, Databases: 4, HugePages: HugeNever, Cluster: "test",
		Group: "78"}.Differences(in)
	want := []Difference{
		{"size", "1GiB", "8MiB"}, {"slots", "6", "5"}, {"max_value", "5000", "4KiB"}, {"databases", "4", "3"},
		{"huge_pages", "never", "auto"}, {"cluster", "test", "prod"}, {"group", "78", "77"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want\n%+v", got, want)
	}
	// Defaults are values as well.
	if got := (Config{}).Differences(in); len(got) != 5 || got[0] != (Difference{"size", "256MiB", "8MiB"}) {
		t.Errorf("defaults: %+v", got)
	}
}
