package explore

import "testing"

func write(begin, end, v int) Call[int] {
	return Call[int]{Begin: begin, End: end, Apply: func(int) (int, bool) { return v, true }}
}

func read(begin, end, v int) Call[int] {
	return Call[int]{Begin: begin, End: end, Apply: func(s int) (int, bool) { return s, s == v }}
}

func TestLinearizable(t *testing.T) {
	for _, c := range []struct {
		name  string
		calls []Call[int]
		final func(int) bool
		want  bool
	}{
		{"nothing", nil, nil, true},
		{"in order", []Call[int]{write(1, 2, 7), read(3, 4, 7)}, nil, true},
		{"stale", []Call[int]{write(1, 2, 7), read(3, 4, 0)}, nil, false},
		{"overlap, old", []Call[int]{write(1, 4, 7), read(2, 3, 0)}, nil, true},
		{"overlap, new", []Call[int]{write(1, 4, 7), read(2, 3, 7)}, nil, true},
		{"new, then old", []Call[int]{write(1, 6, 7), read(2, 3, 7), read(4, 5, 0)}, nil, false},
		{"pending, seen", []Call[int]{write(1, 0, 7), read(2, 3, 7)}, nil, true},
		{"pending, not seen", []Call[int]{write(1, 0, 7), read(2, 3, 0)}, nil, true},
		{"pending, seen and gone", []Call[int]{write(1, 0, 7), read(2, 3, 7), read(4, 5, 0)}, nil, false},
		{"pending before it began", []Call[int]{read(1, 2, 7), write(3, 0, 7)}, nil, false},
		{"pending decides the end", []Call[int]{write(1, 0, 7)}, func(s int) bool { return s == 7 }, true},
		{"wrong end", []Call[int]{write(1, 2, 7)}, func(s int) bool { return s == 0 }, false},
		{"two orders", []Call[int]{write(1, 5, 1), write(1, 5, 2), read(6, 7, 1)}, nil, true},
		{"both last", []Call[int]{write(1, 5, 1), write(1, 5, 2), read(6, 7, 1), read(8, 9, 2)}, nil, false},
	} {
		if got := Linearizable(0, c.calls, c.final); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}
