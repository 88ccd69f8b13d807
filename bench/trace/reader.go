package trace

import (
	"bufio"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Reader reads a trace event by event and checks every promise of the format
// on the way.
type Reader struct {
	file *countingReader
	gz   *gzip.Reader
	body *countingReader
	led  ledger
	err  error // io.EOF after the end, else the first error
}

// NewReader checks the header of the trace on r.
func NewReader(r io.Reader) (*Reader, error) {
	file := &countingReader{r: bufio.NewReader(r)}
	if err := checkHeader(file); err != nil {
		return nil, err
	}
	gz, err := gzip.NewReader(file)
	if err != nil {
		return nil, file.explain("bad gzip header", err)
	}
	if h := gz.Header; h.Name != "" || h.Comment != "" || len(h.Extra) != 0 {
		return nil, formatError("file", headerSize, "the gzip header carries text, a trace has none", nil)
	}
	gz.Multistream(false) // so that bytes after the trace are seen, not unpacked
	return &Reader{file: file, gz: gz, body: &countingReader{r: bufio.NewReader(gz)}}, nil
}

func checkHeader(file *countingReader) error {
	var h [headerSize]byte
	for i := range h {
		b, err := file.ReadByte()
		if err != nil {
			return file.explain("header is cut off", err)
		}
		h[i] = b
	}
	want := header()
	le := binary.LittleEndian
	switch {
	case [8]byte(h[:]) != [8]byte(want[:]):
		return formatError("file", 0, fmt.Sprintf("magic is %q, want %q", h[:8], magic), nil)
	case le.Uint16(h[8:]) != version:
		return formatError("file", 8, fmt.Sprintf("version is %d, this program reads %d: capture the trace again with this program", le.Uint16(h[8:]), version), nil)
	case le.Uint16(h[10:]) != headerSize:
		return formatError("file", 10, fmt.Sprintf("header size is %d, want %d", le.Uint16(h[10:]), headerSize), nil)
	case le.Uint32(h[12:]) != 0:
		return formatError("file", 12, fmt.Sprintf("reserved field is %#x, want 0", le.Uint32(h[12:])), nil)
	}
	return nil
}

// Next returns the next event, or io.EOF after the last one, when the rest of
// the file has been checked too. Any other error wraps ErrFormat, or what the
// underlying reader failed with.
func (r *Reader) Next() (Event, error) {
	if r.err != nil {
		return Event{}, r.err
	}
	at := r.body.n
	e, err := r.next()
	if err == nil || err == io.EOF {
		r.err = err
		return e, err
	}
	var f *fault
	if errors.As(err, &f) {
		r.err = formatError("body", at, fmt.Sprintf("event %d", r.led.events), err)
	} else {
		// Unpacking went wrong, so the place in the file tells more.
		r.err = r.file.explain(fmt.Sprintf("event %d", r.led.events), err)
	}
	return Event{}, r.err
}

// next reads one event; an error of its contents is a fault.
func (r *Reader) next() (Event, error) {
	head, err := r.uvarint(maxTimeUS<<2 | 3)
	if err != nil {
		return Event{}, unexpected(err)
	}
	e := Event{Kind: Kind(head & 3), TimeUS: r.led.timeUS + int64(head>>2)}
	switch e.Kind {
	case Open:
		err = r.readOpen(&e)
	case Close:
		var back uint32
		back, err = r.back(uint32(len(r.led.opens)), "open")
		if err == nil && back == uint32(len(r.led.opens)) {
			err = &fault{"close of an open that has not happened"}
		}
		e.Open = back
	case end:
		return Event{}, r.finish(head)
	}
	if err != nil {
		return Event{}, unexpected(err)
	}
	if err := r.led.apply(&e); err != nil {
		return Event{}, &fault{err.Error()}
	}
	return e, nil
}

func (r *Reader) readOpen(e *Event) (err error) {
	e.Open = uint32(len(r.led.opens))
	threads := uint32(len(r.led.threads))
	if e.Thread, err = r.back(threads, "thread"); err != nil {
		return err
	}
	if e.Thread < threads {
		e.Process = r.led.threads[e.Thread]
	} else if e.Process, err = r.back(r.led.processes, "process"); err != nil {
		return err
	}
	if e.File, err = r.back(r.led.files, "file"); err != nil {
		return err
	}
	mode, err := r.body.ReadByte()
	e.Mode = Mode(mode)
	return err
}

// finish reads what follows the head of the end. It returns io.EOF if all is
// well.
func (r *Reader) finish(head uint64) error {
	events, err := r.uvarint(MaxEvents)
	if err != nil {
		return unexpected(err)
	}
	if head>>2 != 0 {
		return &fault{"the end has a time"}
	}
	if events != uint64(r.led.events) {
		return &fault{fmt.Sprintf("the end counts %d events, the file has %d", events, r.led.events)}
	}
	if err := r.led.finish(); err != nil {
		return &fault{err.Error()}
	}
	// Only reading on makes gzip check its sum.
	if _, err := r.body.ReadByte(); err == nil {
		return &fault{"the body goes on after the end"}
	} else if err != io.EOF {
		return err
	}
	if _, err := r.file.ReadByte(); err == nil {
		return errors.New("the file goes on after the trace")
	} else if err != io.EOF {
		return err
	}
	return io.EOF
}

// back reads a number that is written as its distance back from next.
func (r *Reader) back(next uint32, what string) (uint32, error) {
	d, err := r.uvarint(MaxEvents)
	if err != nil {
		return 0, err
	}
	if d > uint64(next) {
		return 0, &fault{fmt.Sprintf("%s lies %d back, there are %d", what, d, next)}
	}
	return next - uint32(d), nil
}

// uvarint reads a varint of at most limit. It does not use
// binary.ReadUvarint, which cannot tell an overlong number from a bad stream.
func (r *Reader) uvarint(limit uint64) (uint64, error) {
	var x uint64
	for shift := 0; shift < 64; shift += 7 {
		b, err := r.body.ReadByte()
		if err != nil {
			return 0, err
		}
		x |= uint64(b&0x7f) << shift
		if b < 0x80 {
			if x > limit {
				return 0, &fault{fmt.Sprintf("number %d is beyond its limit of %d", x, limit)}
			}
			return x, nil
		}
	}
	return 0, &fault{"number is longer than 64 bits"}
}

// ReadAll reads a whole trace.
func ReadAll(r io.Reader) (*Trace, error) {
	rd, err := NewReader(r)
	if err != nil {
		return nil, err
	}
	t := &Trace{}
	for {
		e, err := rd.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		t.Events = append(t.Events, e)
	}
	t.Opens, t.Files = len(rd.led.opens), int(rd.led.files)
	t.Processes, t.Threads = int(rd.led.processes), len(rd.led.threads)
	return t, nil
}

// fault is something wrong with what the body says, as against the packing
// around it.
type fault struct{ reason string }

func (f *fault) Error() string { return f.reason }

// formatError names the offset, in the file or in the unpacked body.
func formatError(where string, offset int64, what string, cause error) error {
	if cause == nil {
		return fmt.Errorf("%w: %s offset %d: %s", ErrFormat, where, offset, what)
	}
	return fmt.Errorf("%w: %s offset %d: %s: %w", ErrFormat, where, offset, what, cause)
}

// unexpected turns the end of input in the middle of something into the error
// that says so.
func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// countingReader knows its offset, and whether reading itself has failed. It is
// an io.ByteReader so that gzip takes no byte beyond its own end.
type countingReader struct {
	r      *bufio.Reader
	n      int64
	failed error
}

// explain says where in the file something went wrong: an error of the file's
// contents, unless it could not be read.
func (c *countingReader) explain(what string, err error) error {
	if c.failed != nil {
		return fmt.Errorf("read trace at file offset %d: %w", c.n, c.failed)
	}
	return formatError("file", c.n, what, unexpected(err))
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	c.note(err)
	return n, err
}

func (c *countingReader) ReadByte() (byte, error) {
	b, err := c.r.ReadByte()
	if err == nil {
		c.n++
	}
	c.note(err)
	return b, err
}

func (c *countingReader) note(err error) {
	if err != nil && err != io.EOF {
		c.failed = err
	}
}
