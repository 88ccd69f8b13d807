//go:build verify

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// The listing in docs/api is what the source says: who changes the API shows it.
func TestListing(t *testing.T) {
	const root = "../.."
	all, err := list(root)
	if err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(filepath.Join(root, listings))
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != len(all) {
		t.Errorf("%d packages are listed, and there are %d: make api, and look at the difference", len(entries),
			len(all))
	}
	for name, want := range all {
		got, err := os.ReadFile(filepath.Join(root, listings, name))
		if err != nil {
			t.Error(err)
			continue
		}
		if !bytes.Equal(got, want) {
			t.Errorf("docs/api/%s is not what the source says: make api, and look at the difference", name)
		}
	}
}
