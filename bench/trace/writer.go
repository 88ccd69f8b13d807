package trace

import (
	"bufio"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"io"
)

const (
	magic      = "mainztrc"
	version    = 1
	headerSize = 16
)

func header() [headerSize]byte {
	var h [headerSize]byte
	copy(h[:], magic)
	binary.LittleEndian.PutUint16(h[8:], version)
	binary.LittleEndian.PutUint16(h[10:], headerSize)
	return h
}

// Writer writes a trace. After the last event Finish must be called, else the
// file has no end and no reader takes it.
type Writer struct {
	gz   *gzip.Writer
	body *bufio.Writer
	led  ledger
	err  error // the first one; nothing is written after it
}

// NewWriter starts a trace on w. It does not close w.
func NewWriter(w io.Writer) (*Writer, error) {
	h := header()
	if _, err := w.Write(h[:]); err != nil {
		return nil, fmt.Errorf("write trace header: %w", err)
	}
	gz, err := gzip.NewWriterLevel(w, gzip.BestCompression)
	if err != nil {
		panic(err) // the level is a constant that exists
	}
	return &Writer{gz: gz, body: bufio.NewWriter(gz)}, nil
}

// Write adds an event. Of a close it looks at TimeUS, Kind and Open alone. An
// event that breaks a promise of the format is refused with ErrOrder, and so
// is everything after it.
func (w *Writer) Write(e Event) error {
	if w.err != nil {
		return w.err
	}
	before := w.led.timeUS
	threads, processes, files := uint32(len(w.led.threads)), w.led.processes, w.led.files
	if err := w.led.apply(&e); err != nil {
		w.err = fmt.Errorf("write event %d: %w: %w", w.led.events, ErrOrder, err)
		return w.err
	}
	buf := make([]byte, 0, 5*binary.MaxVarintLen64)
	buf = binary.AppendUvarint(buf, uint64(e.TimeUS-before)<<2|uint64(e.Kind))
	if e.Kind == Open {
		buf = binary.AppendUvarint(buf, uint64(threads-e.Thread))
		if e.Thread == threads {
			buf = binary.AppendUvarint(buf, uint64(processes-e.Process))
		}
		buf = binary.AppendUvarint(buf, uint64(files-e.File))
		buf = append(buf, byte(e.Mode))
	} else {
		buf = binary.AppendUvarint(buf, uint64(len(w.led.opens))-uint64(e.Open))
	}
	return w.put(buf)
}

// Finish ends the trace. Every open must have been closed.
func (w *Writer) Finish() error {
	if w.err != nil {
		return w.err
	}
	if err := w.led.finish(); err != nil {
		w.err = fmt.Errorf("finish: %w: %w", ErrOrder, err)
		return w.err
	}
	if err := w.put(binary.AppendUvarint([]byte{byte(end)}, uint64(w.led.events))); err != nil {
		return err
	}
	if w.err = w.body.Flush(); w.err == nil {
		w.err = w.gz.Close()
	}
	if w.err != nil {
		w.err = fmt.Errorf("write trace: %w", w.err)
		return w.err
	}
	w.err = fmt.Errorf("%w: write after Finish", ErrOrder)
	return nil
}

func (w *Writer) put(buf []byte) error {
	if _, err := w.body.Write(buf); err != nil {
		w.err = fmt.Errorf("write trace: %w", err)
	}
	return w.err
}
