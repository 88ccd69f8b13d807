package main

import (
	"fmt"
	"io"
	"os"
	"time"
)

// progressLine shows progress on standard error: on a terminal in one line
// that changes, else in a line every two seconds. A nil one shows nothing.
type progressLine struct {
	w        io.Writer
	terminal bool
	last     time.Time
	shown    int // columns on the line
}

func newProgressLine(w io.Writer) *progressLine {
	l := &progressLine{w: w}
	if f, ok := w.(*os.File); ok {
		info, err := f.Stat()
		l.terminal = err == nil && info.Mode()&os.ModeCharDevice != 0
	}
	return l
}

// print shows the text; news gets a line of its own at once.
func (l *progressLine) print(text string, news bool) {
	now := time.Now()
	if !l.terminal {
		if news || now.Sub(l.last) >= 2*time.Second {
			l.last = now
			fmt.Fprintln(l.w, text)
		}
		return
	}
	if !news && now.Sub(l.last) < 100*time.Millisecond {
		return
	}
	l.last = now
	fmt.Fprintf(l.w, "\r%-*s", l.shown, text)
	l.shown = len(text)
	if news {
		fmt.Fprintln(l.w)
		l.shown = 0
	}
}

func (l *progressLine) end() {
	if l != nil && l.shown > 0 {
		fmt.Fprintf(l.w, "\r%-*s\r", l.shown, "")
	}
}
