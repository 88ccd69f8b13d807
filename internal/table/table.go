package table

import (
	"fmt"
	"io"
	"text/tabwriter"
)

// Writer lines up the cells of a table; a tab ends a cell, a new line a row. Nothing
// is written before Flush, whose error is that of the write.
type Writer struct{ *tabwriter.Writer }

// New returns a table whose columns begin below each other.
func New(w io.Writer) Writer { return Writer{tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)} }

// NewRight returns a table whose columns end below each other, as figures do.
func NewRight(w io.Writer) Writer {
	return Writer{tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)}
}

// Row writes a name and what it is.
func (w Writer) Row(name, format string, args ...any) {
	fmt.Fprintf(w, "%s\t%s\n", name, fmt.Sprintf(format, args...))
}
