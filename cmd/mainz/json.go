package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"unicode"
	"unicode/utf16"
)

// newEncoder is json.NewEncoder for what may reach a terminal: names that others have
// written are in it. encoding/json escapes the control characters below U+0020 only,
// and some terminals obey U+0080 to U+009F as well.
func newEncoder(w io.Writer) *json.Encoder { return json.NewEncoder(plain{w}) }

// plain writes JSON with all that is not printable escaped. Outside of strings JSON has
// no such character. An encoder writes a whole value at a time.
type plain struct{ w io.Writer }

func (p plain) Write(b []byte) (int, error) {
	strange := func(r rune) bool { return r >= 0x7f && !unicode.IsPrint(r) }
	out := b
	if bytes.ContainsFunc(b, strange) {
		out = make([]byte, 0, len(b)+64)
		for _, r := range string(b) {
			switch {
			case !strange(r):
				out = append(out, string(r)...)
			case r > 0xffff:
				hi, lo := utf16.EncodeRune(r)
				out = fmt.Appendf(out, `\u%04x\u%04x`, hi, lo)
			default:
				out = fmt.Appendf(out, `\u%04x`, r)
			}
		}
	}
	if _, err := p.w.Write(out); err != nil {
		return 0, err
	}
	return len(b), nil
}
