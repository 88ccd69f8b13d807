package protocol

import (
	"reflect"
	"testing"
)

// TestEffectsMove: Take gives out every field, and each comes once. Those are excepted
// that it fills in itself.
func TestEffectsMove(t *testing.T) {
	filled := map[string]bool{"Gate": true, "Lease": true, "Next": true, "WantLock": true, "Fault": true}
	var from, to Effects
	for _, e := range []*Effects{&from, &to} {
		e.Sends, e.Events, e.Replies, e.buf = make([]Send, 1, 7), make([]Event, 1, 7), make([]Reply, 1, 7), make([]byte, 1, 7)
	}
	v := reflect.ValueOf(&from).Elem()
	for i := range v.NumField() {
		switch f := v.Field(i); f.Kind() {
		case reflect.Bool:
			f.SetBool(true)
		case reflect.Uint64:
			f.SetUint(5)
		case reflect.Slice, reflect.Struct, reflect.Int64, reflect.String:
		default:
			t.Errorf("%s: this test does not know its kind", v.Type().Field(i).Name)
		}
	}
	full, spare := from, to
	from.moveTo(&to)
	for i := range v.NumField() {
		name := v.Type().Field(i).Name
		was, left, got := reflect.ValueOf(full).Field(i), v.Field(i), reflect.ValueOf(to).Field(i)
		switch {
		case filled[name]:
		case was.Kind() == reflect.Slice:
			if got.UnsafePointer() != was.UnsafePointer() || got.Len() != 1 {
				t.Errorf("%s is not given out", name)
			}
			if left.UnsafePointer() != reflect.ValueOf(spare).Field(i).UnsafePointer() || left.Len() != 0 || left.Cap() != 7 {
				t.Errorf("%s does not take the caller's buffer", name)
			}
		case !got.Equal(was) || was.IsZero():
			t.Errorf("%s is not given out", name)
		case !left.IsZero():
			t.Errorf("%s comes again", name)
		}
	}
}
