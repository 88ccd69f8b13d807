package sim

// event is what happens at an instant of real time: a datagram that arrives, a
// host's timer, or anything else.
type event struct {
	at    instant
	seq   uint64
	host  *host
	start int    // timer and call: of this start of the host
	b     []byte // datagram, nil: timer
	f     func() // anything else; with a host: on its dispatcher's thread
}

func (e *event) before(o *event) bool {
	return e.at < o.at || e.at == o.at && e.seq < o.seq
}

// events is a heap by time and sequence: container/heap would allocate for each.
type events []event

func (q *events) push(e event) {
	h := append(*q, e)
	i := len(h) - 1
	for i > 0 && h[i].before(&h[(i-1)/2]) {
		h[i], h[(i-1)/2] = h[(i-1)/2], h[i]
		i = (i - 1) / 2
	}
	*q = h
}

func (q *events) pop() event {
	h := *q
	e, n := h[0], len(h)-1
	h[0], h[n] = h[n], event{}
	h = h[:n]
	for i := 0; ; {
		low := 2*i + 1
		if low+1 < n && h[low+1].before(&h[low]) {
			low++
		}
		if low >= n || !h[low].before(&h[i]) {
			break
		}
		h[i], h[low] = h[low], h[i]
		i = low
	}
	*q = h
	return e
}

// schedule lets e happen in d of real time.
func (c *Cluster) schedule(d instant, e event) {
	if c.doing != nil { // it leaves at the end of the step
		e.at = max(d, 0)
		c.late = append(c.late, e)
		return
	}
	c.seq++
	e.at, e.seq = c.now+max(d, 0), c.seq
	c.events.push(e)
}

// after runs f in d of real time.
func (c *Cluster) after(d instant, f func()) { c.schedule(d, event{f: f}) }

// happen does what an event is about.
func (c *Cluster) happen(e *event) {
	switch h := e.host; {
	case h == nil:
		e.f()
	default:
		h.feed(e)
	}
}

// buffer copies a datagram.
func (c *Cluster) buffer(b []byte) []byte {
	var v []byte
	if n := len(c.buffers); n > 0 {
		v, c.buffers = c.buffers[n-1], c.buffers[:n-1]
	}
	return append(v[:0], b...)
}

// mtu of the run's links, 0 for their default. In one run of eight it is so small
// that nearly everything goes in fragments. Not drawn: a seed's mix stays what it is.
func (c *Cluster) mtu() int {
	if c.opt.Seed%8 == 7 {
		return 200
	}
	return 0
}
