package sim

import (
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"strconv"
	"strings"

	"github.com/mainzdb/mainz/protocol"
	"github.com/mainzdb/mainz/protocol/wire"
)

// Script runs a scenario on a cluster without any faults of its own and returns
// its transcript: each command behind "> ", then every message and change of
// state until the next. At the end everything is healed and checked like a seed.
//
//	cluster 3 always [open] [arbiter] [parts] [promise] [cap=90] [drift=3] [limits=7741]
//	                          nodes and policy; databases are opened; half of the nodes and a
//	                          lock go on; who crashes cold keeps a promise file; bytes of a store; per cent by which the first node's
//	                          clock is fast and the last one's slow; which limits are
//	                          small, a number as in a seed's mix. Runs until all are open
//	key a lmaster=1 [pieces]  a key that node 1 is the LMASTER of
//	do 2 store a hello        a client of node 2, through the dispatcher, until it is answered
//	go 2.2 lock a timeout=500 the node's second client; does not wait
//	bypass 2 fetch a          the same by bypass, until it is answered
//	    fetch, store V, delete, append V, piece S|X, named S|X (the client names it), remove, lock, unlock, storeunlock V, watch RSN
//	    do 0 lock a lck=20      its LCKTIMEOUT in milliseconds, else 500
//	    do 0 fetch a is=v1    what it must return
//	    bypass 0 fetch a slow=20ms  each of its steps takes that long; does not wait
//	run 20ms
//	lose|repeat|late OP [by]  the next datagram that carries this message
//	open N DB MODE            a client of node N opens a database (a number) as kv or pieces
//	traverse N DB             a client of node N reads all of a database
//	giveup N.M                the client waits no longer
//	full N | room N           node N has no room for anything, or has some again
//	brim N                    nor in the reserve, which should never be
//	drain N                   node N leaves; until it has left, and stopped
//	file 3 | file all [N]     the next nodes file, without node 3 or with all; for those that
//	                          run, or for node N only; or what it has missed, if others have it
//	cut 0>1 | cut 0,1|2       one way; or between two sides
//	mute 0>1                  DATA does not get through, all else does
//	heal                      all links
//	cold N | warm N           node N crashes, its memory with it or not
//	own N KEY V               node N has the record KEY, whoever else has: a fault that nobody should make
//	fault N | fault N none    what keeps node N from opening; there must be something, or nothing
//	clock N -60000ms          the wall clock that node N finds at its next start is that far off
//	stall N 140ms 20ms 50     50 times: it stands still for 140 ms, and works for 20; not told
//	axe N 7                   node N dies before the 7th of its stores from here, and starts again
//	boot N | pause N | resume N | kill N.M
//	when OP cold|warm N       node N crashes as the next datagram with this message goes out
//	count [N]                 DATA messages since the last count; N: so many it must be
//	openings [N]              epochs opened since the start or the last of these; the same
//	#                         a comment
func Script(script string) (transcript string, failures []Failure) {
	s := &scenario{keys: map[string]scriptKey{}}
	for _, line := range strings.Split(script, "\n") {
		line = strings.TrimSpace(line)
		switch {
		case line == "":
			continue
		case line[0] == '#':
			s.out.WriteString(line + "\n")
			continue
		}
		s.out.WriteString("> " + line + "\n")
		if err := s.command(strings.Fields(line)); err != nil {
			s.out.WriteString("ERROR " + err.Error() + "\n")
			return s.out.String(), []Failure{{"script", line + ": " + err.Error()}}
		}
	}
	if s.c == nil {
		return s.out.String(), []Failure{{"script", "no cluster"}}
	}
	s.c.opt.Trace = func(line string) {
		if strings.Contains(line, "FAIL ") {
			s.out.WriteString(line + "\n")
		}
	}
	s.c.rules = nil
	s.c.heal()
	s.c.check.settle()
	if n := s.c.check.linearizable(); n > 0 {
		s.c.check.fail("S3", "%d histories undecided", n)
	}
	return s.out.String(), s.c.check.failures
}

type scenario struct {
	c      *Cluster
	out    strings.Builder
	keys   map[string]scriptKey
	sent   uint64
	opened int
}

type scriptKey struct {
	db  uint32
	key string
}

func (s *scenario) command(f []string) error {
	if f[0] != "cluster" && s.c == nil {
		return fmt.Errorf("the first command is cluster")
	}
	switch f[0] {
	case "cluster":
		return s.cluster(f[1:])
	case "key":
		return s.key(f[1:])
	case "do", "go", "bypass":
		return s.client(f)
	case "run":
		d, err := duration(f[1])
		if err == nil {
			s.c.until(s.c.now + d)
		}
		return err
	case "lose", "repeat", "late", "when":
		return s.rule(f)
	case "cut":
		return s.cut(f[1])
	case "mute":
		return s.mute(f[1])
	case "open":
		return s.open(f)
	case "traverse":
		return s.traverse(f)
	case "file":
		return s.file(f[1], f[2:]...)
	case "heal":
		s.c.cutTo, s.c.muteTo = [wire.MaxNodes]wire.Set{}, [wire.MaxNodes]wire.Set{}
		return nil
	case "count":
		n := int(s.c.cmsgs - s.sent)
		s.sent = s.c.cmsgs
		return s.number(f, n, "messages")
	case "openings":
		n := s.c.check.recovs - s.opened
		s.opened = s.c.check.recovs
		return s.number(f, n, "epochs opened")
	}
	h, rest, err := s.host(f[1])
	if err != nil {
		return err
	}
	switch f[0] {
	case "cold", "warm":
		h.crash(f[0] == "cold")
	case "boot":
		if h.up {
			return fmt.Errorf("node %d is up", h.pnn)
		}
		h.boot()
	case "own":
		k := s.keys[f[2]]
		h.seg.add(&record{db: k.db, key: k.key, rsn: 7, accessor: wire.NoPNN, data: []byte(f[3])})
		s.c.faulty = true
	case "fault":
		s.c.trace("node %d is kept closed by: %s", h.pnn, h.node.Fault())
		if (h.node.Fault() == "") != (len(f) > 2) {
			return fmt.Errorf("node %d: fault %q", h.pnn, h.node.Fault())
		}
	case "stall":
		return s.stall(h, f[2:])
	case "axe":
		n, err := strconv.Atoi(f[2])
		h.killAt = h.points + n
		return err
	case "clock":
		h.wall, err = duration(f[2])
		return err
	case "pause":
		h.pause(3600 * sec)
	case "resume":
		h.resume()
	case "full", "room":
		if h.room, h.brim = 0, false; f[0] == "room" {
			h.room = 1 << 20
		}
	case "brim":
		h.brim, s.c.faulty = true, true
	case "giveup":
		cl := s.clientOf(h, rest)
		if cl.wait == nil {
			return fmt.Errorf("the client waits for nothing")
		}
		cl.wait.giveUp()
	case "drain":
		return s.drain(h)
	case "kill":
		s.clientOf(h, rest).die("kill -9")
	default:
		return fmt.Errorf("no such command: %s", f[0])
	}
	return nil
}

// number tells a count, and compares it with the one that the script wants.
func (s *scenario) number(f []string, n int, what string) error {
	fmt.Fprintf(&s.out, "%d %s\n", n, what)
	if len(f) > 1 && f[1] != strconv.Itoa(n) {
		return fmt.Errorf("%d %s, not %s", n, what, f[1])
	}
	return nil
}

func duration(v string) (instant, error) {
	n, unit := v, ms
	if k, ok := strings.CutSuffix(v, "us"); ok {
		n, unit = k, us
	} else if k, ok := strings.CutSuffix(v, "ms"); ok {
		n = k
	}
	d, err := strconv.Atoi(n)
	return instant(d) * unit, err
}

func (s *scenario) cluster(f []string) error {
	n, err := strconv.Atoi(f[0])
	if err != nil || n < 1 || n > wire.MaxNodes || len(f) < 2 {
		return fmt.Errorf("want a number of nodes and a policy")
	}
	c := &Cluster{cover: newCover(), rng: rand.New(rand.NewPCG(1, 2)), hash: fnv.New64a(), fixed: true, files: []wire.Set{0}}
	c.mix = Mix{Nodes: n, Delay: 50 * us, Policy: f[1], Keys: 1}
	for _, o := range f[2:] {
		v, _ := strings.CutPrefix(o, "cap=")
		percent, drifts := strings.CutPrefix(o, "drift=")
		number, few := strings.CutPrefix(o, "limits=")
		switch {
		case v != o:
			c.mix.Cap, _ = strconv.Atoi(v)
		case drifts:
			d, _ := strconv.Atoi(percent)
			c.mix.Drift = float64(d) / 100
		case few:
			c.mix.Limits, _ = strconv.Atoi(number)
		case o == "open":
			c.mix.Open = true
		case o == "parts":
			c.parts = true
		case o == "arbiter":
			c.mix.Arbiter = true
		case o == "promise":
			c.mix.Promise = true
		default:
			c.opt.Plant = o
		}
	}
	c.check = newChecker(c)
	s.c = c
	for i := range n {
		h := &host{c: c, pnn: protocol.PNN(i), rate: 1, offset: sec, stable: protocol.NewMemory(protocol.Lines{}), room: 1 << 20}
		h.seg = newSegment(h, 0)
		c.hosts = append(c.hosts, h)
	}
	c.hosts[0].rate += c.mix.Drift
	c.hosts[n-1].rate -= c.mix.Drift
	for _, h := range c.hosts {
		h.boot()
	}
	if c.mix.Arbiter {
		c.arbitrate()
	}
	c.after(0, c.audit)
	for i := 0; i < 1000 && !s.allOpen(); i++ {
		c.until(c.now + ms)
	}
	if !s.allOpen() {
		return fmt.Errorf("the cluster does not open")
	}
	c.until(c.now + 50*ms)
	s.sent, s.opened = c.cmsgs, c.check.recovs
	c.opt.Trace = func(line string) { s.out.WriteString(strings.TrimRight(line, " ") + "\n") }
	return nil
}

func (s *scenario) allOpen() bool {
	for _, h := range s.c.hosts {
		if !serving(h) {
			return false
		}
	}
	return true
}

func (s *scenario) key(f []string) error {
	if len(f) < 2 || !strings.HasPrefix(f[1], "lmaster=") {
		return fmt.Errorf("want a name and lmaster=N")
	}
	h, _, err := s.host(strings.TrimPrefix(f[1], "lmaster="))
	if err != nil {
		return err
	}
	db := uint32(dbKV)
	if len(f) > 2 && f[2] == "pieces" {
		db = dbPieces
	}
	for i := range 10000 {
		k := f[0] + strconv.Itoa(i)
		if s.c.hosts[0].stable.LMaster(hashKey(db, []byte(k))) == h.pnn {
			s.keys[f[0]] = scriptKey{db, k}
			return nil
		}
	}
	return fmt.Errorf("no such key")
}

func (s *scenario) host(v string) (h *host, rest string, err error) {
	v, rest, _ = strings.Cut(v, ".")
	n, err := strconv.Atoi(v)
	if err != nil || n < 0 || n >= len(s.c.hosts) {
		return nil, "", fmt.Errorf("no node %s", v)
	}
	return s.c.hosts[n], rest, nil
}

// clientOf finds or makes a node's client by its number, 1 if there is none.
func (s *scenario) clientOf(h *host, number string) *client {
	want := 1
	if number != "" {
		want, _ = strconv.Atoi(number)
	}
	for {
		n := 0
		for _, cl := range h.clients {
			if cl.alive {
				if n++; n == want {
					return cl
				}
			}
		}
		h.nextID++
		h.clients = append(h.clients, &client{h: h, id: h.nextID, seg: h.seg, alive: true, manual: true, idle: true})
	}
}

func (s *scenario) rule(f []string) error {
	r := rule{verb: f[0]}
	for op := range wire.Op(128) {
		if op.Valid() && op.String() == f[1] {
			r.op = op
		}
	}
	if r.op == 0 {
		return fmt.Errorf("no message is called %s", f[1])
	}
	if f[0] == "late" {
		d, err := duration(f[2])
		if err != nil {
			return err
		}
		r.delay = d
	}
	if f[0] == "when" {
		if len(f) < 4 || f[2] != "cold" && f[2] != "warm" {
			return fmt.Errorf("want a message, cold or warm, and a node")
		}
		h, _, err := s.host(f[3])
		if err != nil {
			return err
		}
		r.crash, r.cold = h, f[2] == "cold"
	}
	s.c.rules = append(s.c.rules, r)
	return nil
}

// mute one direction for DATA.
func (s *scenario) mute(v string) error {
	from, to, _ := strings.Cut(v, ">")
	a, _, err1 := s.host(from)
	b, _, err2 := s.host(to)
	if err1 != nil || err2 != nil {
		return fmt.Errorf("no such link")
	}
	s.c.muteTo[a.pnn] |= 1 << b.pnn
	return nil
}

// stall a node again and again.
func (s *scenario) stall(h *host, f []string) error {
	if len(f) < 3 {
		return fmt.Errorf("want how long it stands still, how long it works, and how often")
	}
	still, err1 := duration(f[0])
	works, err2 := duration(f[1])
	times, err3 := strconv.Atoi(f[2])
	if err1 != nil || err2 != nil || err3 != nil {
		return fmt.Errorf("two durations and a number")
	}
	trace := s.c.opt.Trace
	defer func() { s.c.opt.Trace = trace }()
	s.c.opt.Trace = func(string) {}
	for range times {
		h.pause(3600 * sec)
		s.c.until(s.c.now + still)
		h.resume()
		s.c.until(s.c.now + works)
	}
	return nil
}

func (s *scenario) cut(v string) error {
	if from, to, ok := strings.Cut(v, ">"); ok {
		a, _, err1 := s.host(from)
		b, _, err2 := s.host(to)
		if err1 != nil || err2 != nil {
			return fmt.Errorf("no such link")
		}
		s.c.cutTo[a.pnn] |= 1 << b.pnn
		return nil
	}
	left, right, ok := strings.Cut(v, "|")
	if !ok {
		return fmt.Errorf("want 0>1 or 0,1|2")
	}
	for _, l := range strings.Split(left, ",") {
		for _, r := range strings.Split(right, ",") {
			a, _, err1 := s.host(l)
			b, _, err2 := s.host(r)
			if err1 != nil || err2 != nil {
				return fmt.Errorf("no such link")
			}
			s.c.cutTo[a.pnn] |= 1 << b.pnn
			s.c.cutTo[b.pnn] |= 1 << a.pnn
		}
	}
	return nil
}

// client does one operation: verb, node[.client], operation, key, arguments.
func (s *scenario) client(f []string) error {
	if len(f) < 4 {
		return fmt.Errorf("want a node, an operation and a key")
	}
	h, number, err := s.host(f[1])
	if err != nil {
		return err
	}
	k, ok := s.keys[f[3]]
	if !ok {
		return fmt.Errorf("no key %s", f[3])
	}
	cl := s.clientOf(h, number)
	if !cl.idle {
		return fmt.Errorf("client %d.%d is at work", h.pnn, cl.id)
	}
	if cl.seg != h.seg {
		cl.seg, cl.pieces, cl.locked, cl.lock = h.seg, nil, nil, nil
	}
	o := &operation{cl: cl, db: k.db, key: k.key, m: wire.Message{DBID: k.db, Key: []byte(k.key)}}
	arg, must, is, lck := "", "", false, -1
	cl.slow = 0
	for _, a := range f[4:] {
		if v, ok := strings.CutPrefix(a, "is="); ok {
			must, is = v, true
		} else if v, ok := strings.CutPrefix(a, "slow="); ok {
			if cl.slow, err = duration(v); err != nil {
				return err
			}
		} else if v, ok := strings.CutPrefix(a, "lck="); ok {
			if lck, err = strconv.Atoi(v); err != nil {
				return err
			}
		} else if v, ok := strings.CutPrefix(a, "timeout="); ok {
			n, err := strconv.Atoi(v)
			if err != nil {
				return err
			}
			o.m.Timeout = uint32(n)
		} else {
			arg = a
		}
	}
	rec, err := o.build(f[2], arg)
	if err != nil {
		return err
	}
	if lck >= 0 {
		o.m.LockTimeout = uint32(lck)
	}
	o.call, o.life = s.c.now, cl.seg.life
	o.hist = s.c.check.invoke(o)
	cl.wait, cl.idle = o, false
	switch {
	case rec != nil:
		cl.locked = nil
		o.unlockHere(rec)
	case f[0] == "bypass" && o.m.Op == wire.ReqFetch:
		o.bypassRead()
	case f[0] == "bypass":
		o.bypassUpdate()
	default:
		o.submit()
	}
	wait := f[0] != "go" && cl.slow == 0
	for i := 0; i < 4000 && wait && !o.ended; i++ {
		s.c.until(s.c.now + ms/2)
	}
	if wait && !o.ended {
		return fmt.Errorf("no answer for 2 s")
	}
	if is && o.hist.out != must {
		return fmt.Errorf("%q, not %q", o.hist.out, must)
	}
	return nil
}

// build fills in the request; rec: the record whose lock the client holds here.
func (o *operation) build(verb, arg string) (rec *record, err error) {
	cl := o.cl
	switch verb {
	case "fetch":
		o.m.Op = wire.ReqFetch
	case "store":
		o.m.Op, o.m.Data = wire.ReqStoreUnlock, []byte(arg)
	case "delete":
		o.m.Op = wire.ReqDelete
	case "append":
		o.m.Op, o.m.Cond, o.m.Data = wire.ReqConditionalAppend, condAlways, []byte(arg)
	case "piece", "named":
		o.named = verb == "named"
		o.m.Op, o.m.Cond, o.m.Data = wire.ReqConditionalAppend, condShare, cl.h.c.check.piece(arg == "X")
	case "remove":
		if len(cl.pieces) == 0 {
			return nil, fmt.Errorf("the client has no piece")
		}
		p := cl.pieces[len(cl.pieces)-1]
		o.m.Op, o.m.Piece, o.m.Data = wire.ReqRemoveTrigger, p.opid, []byte(p.data)
	case "lock":
		o.m.Op, o.m.LockTimeout = wire.ReqFetchLocked, 500
	case "watch":
		n, _ := strconv.Atoi(arg)
		o.m.Op, o.m.RSN = wire.ReqWatch, uint64(n)
	case "unlock", "storeunlock":
		if cl.lock == nil {
			return nil, fmt.Errorf("the client has no lock")
		}
		o.m.Op, o.m.LockID, o.read = wire.ReqUnlock, cl.lock.lockID, cl.lock.read
		if o.hold = cl.lock.hold; o.hold != nil {
			o.hold.leaving = true
		}
		if verb == "storeunlock" {
			o.m.Op, o.m.Data = wire.ReqStoreUnlock, []byte(arg)
			if o.read == nil {
				o.read = []byte{}
			}
		}
		if cl.lock.lockID == 0 {
			rec = cl.locked
		}
		cl.lock = nil
	default:
		return nil, fmt.Errorf("no such operation: %s", verb)
	}
	return rec, nil
}

// open a database, and wait for the answer.
func (s *scenario) open(f []string) error {
	if len(f) < 4 {
		return fmt.Errorf("want a node, a database and a mode")
	}
	h, rest, err := s.host(f[1])
	if err != nil {
		return err
	}
	db, err := strconv.Atoi(f[2])
	if err != nil {
		return err
	}
	mode := protocol.KV
	if f[3] == "pieces" {
		mode = protocol.Pieces
	}
	cl := s.clientOf(h, rest)
	if cl.seg != h.seg {
		cl.seg, cl.pieces, cl.locked, cl.lock = h.seg, nil, nil, nil
	}
	o := cl.opening(uint32(db), mode)
	cl.idle = false
	o.start()
	for i := 0; i < 4000 && !o.ended; i++ {
		s.c.until(s.c.now + ms/2)
	}
	if !o.ended {
		return fmt.Errorf("no answer for 2 s")
	}
	return nil
}

// drain a node until it has left, then stop it.
func (s *scenario) drain(h *host) error {
	for _, cl := range h.clients {
		cl.die("detach")
	}
	h.run(func() { h.node.Drain(h.now(), true) })
	for i := 0; i < 4000; i++ {
		if s.c.until(s.c.now + ms/2); !h.up {
			return nil // it died on the way
		} else if h.node.Node().Left() {
			s.c.trace("node %d has left", h.pnn)
			s.c.check.left(h)
			h.crash(true)
			return nil
		}
	}
	s.c.trace("node %d stays", h.pnn)
	h.run(func() { h.node.Drain(h.now(), false) })
	return nil
}

// file gives all nodes that run, or one of them, the next nodes file.
func (s *scenario) file(v string, only ...string) error {
	var one *host
	if len(only) > 0 {
		h, _, err := s.host(only[0])
		if err != nil {
			return err
		}
		one = h
	}
	var unused wire.Set
	if v != "all" {
		h, _, err := s.host(v)
		if err != nil {
			return err
		}
		unused = 1 << h.pnn
	}
	if one == nil || int(one.file) == len(s.c.files)-1 {
		s.c.files = append(s.c.files, unused)
	} else if missed := s.c.files[one.file+1]; unused != missed {
		return fmt.Errorf("node %d has missed a nodes file with %b unused, not %b", one.pnn, missed, unused)
	}
	for _, h := range s.c.hosts {
		if !h.up || one != nil && h != one {
			continue
		}
		var err error
		h.run(func() { err = h.node.Reconfigure(h.now(), h.file+1, unused) })
		if err != nil {
			return err
		}
		h.file++
	}
	return nil
}

// traverse a database to its end, or until its epoch ends.
func (s *scenario) traverse(f []string) error {
	if len(f) < 3 {
		return fmt.Errorf("want a node and a database")
	}
	h, rest, err := s.host(f[1])
	if err != nil {
		return err
	}
	db, err := strconv.Atoi(f[2])
	if err != nil {
		return err
	}
	cl := s.clientOf(h, rest)
	if cl.seg != h.seg {
		cl.seg, cl.pieces, cl.locked, cl.lock = h.seg, nil, nil, nil
	}
	cl.idle = false
	cl.traverse(uint32(db))
	for i := 0; i < 4000 && !cl.idle; i++ {
		s.c.until(s.c.now + ms/2)
	}
	if !cl.idle {
		return fmt.Errorf("no end after 2 s")
	}
	return nil
}
