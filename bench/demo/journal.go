package demo

import (
	"os"

	mmap "github.com/edsrzf/mmap-go"
)

// journal is what a client was told about each open, a byte per open of the
// trace. It is a mapped file: what the client wrote is there after SIGKILL,
// and writing costs no system call.
type journal []byte

// The states of an open. While it says opening or closing, the entry may be
// there or not.
const (
	journalOpening = iota // or never opened, or refused
	journalOpened         // the client was told that its entry is stored
	journalClosing
	journalClosed // the client was told that its entry is out
)

func createJournal(path string, opens int) (journal, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	// Written, not just made longer: a full ramdisk is an error here, and not
	// a SIGBUS later.
	if _, err := f.Write(make([]byte, max(opens, 1))); err != nil {
		return nil, err
	}
	m, err := mmap.Map(f, mmap.RDWR, 0)
	return journal(m), err
}

// verdict compares a dead client's journal with the entries that were found.
func (j journal) verdict(found []uint32) (lost, resurrected int) {
	there := make([]int, len(j))
	for _, open := range found {
		if int(open) >= len(j) || there[open] > 0 {
			resurrected++
			continue
		}
		there[open]++
	}
	for open, state := range j {
		switch {
		case state == journalOpened && there[open] == 0:
			lost++
		case state == journalClosed && there[open] > 0:
			resurrected++
		}
	}
	return lost, resurrected
}
