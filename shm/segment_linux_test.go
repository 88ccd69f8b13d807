package shm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mainzdb/mainz/internal/testenv"
)

func TestCreateAttach(t *testing.T) {
	dir := mapped(t)
	ctx := context.Background()
	if _, err := Attach(ctx, dir, testLayout); !errors.Is(err, ErrNotRunning) {
		t.Fatalf("attach to nothing: %v", err)
	}
	if _, err := LockOwner(dir); !errors.Is(err, ErrNotRunning) {
		t.Fatalf("own nothing: %v", err)
	}
	old := unix.Umask(0o777) // the modes must not depend on it
	cfg := testConfig(5)
	cfg.DataAlign = 1 << 16
	filled := false
	s, err := Create(ctx, dir, cfg, func(s *Segment) error {
		filled = true
		if _, err := os.Stat(filepath.Join(dir, segmentName)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the segment has its name before it is filled: %v", err)
		}
		s.Gate().VNN.Store(9)
		s.Gate().Gate.Store(5<<2 | GateFrozen)
		areaOf(s).a.Store(42)
		return nil
	})
	unix.Umask(old)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	b, err := Attach(ctx, dir, testLayout)
	if err != nil {
		t.Fatal(err)
	}
	h := b.Header()
	if h.Cluster() != "test" || h.PNN != 3 || b.Slots() != 5 || b.Params() != cfg.Params ||
		!strings.HasPrefix(h.Creator(), "shm.test") || !filled {
		t.Errorf("header says cluster %q, node %d, %d slots, params %v, creator %q", h.Cluster(), h.PNN, b.Slots(),
			b.Params(), h.Creator())
	}
	if state, gen := b.Gate().State(); state != GateFrozen || gen != 5 || b.Gate().VNN.Load() != 9 ||
		b.Lease().Ticks.Load() != NoLease {
		t.Errorf("gate %d, generation %d, VNN %d, lease %#x", state, gen, b.Gate().VNN.Load(), b.Lease().Ticks.Load())
	}
	if off, size := b.Area(AreaData); off%(1<<16) != 0 || size != 1<<16 || areaOf(b).a.Load() != 42 {
		t.Errorf("data lies at %d, %d bytes, and begins with %d", off, size, areaOf(b).a.Load())
	}
	if off, size := b.Area(AreaRings); off != 0 || size != 0 {
		t.Errorf("rings nobody asked for lie at %d, %d bytes", off, size)
	}
	areaOf(b).b.Store(43)
	if areaOf(s).b.Load() != 43 {
		t.Error("the two don't share memory")
	}
	if ram, name := b.OnRamdisk(); !ram || name != "tmpfs" || b.Warning() != "" || b.InHeap() || b.Dir() != dir {
		t.Errorf("on %s, a ramdisk: %v; warning %q; in the heap: %v; in %s", name, ram, b.Warning(), b.InHeap(),
			b.Dir())
	}
	for name, want := range map[string]os.FileMode{"": 0o770 | os.ModeDir | os.ModeSetgid, segmentName: 0o660,
		lockName: 0o660} {
		st, err := os.Lstat(filepath.Join(dir, name))
		if err != nil || st.Mode() != want {
			t.Errorf("%q has mode %v, want %v (%v)", name, st.Mode(), want, err)
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, segmentName), &st); err != nil || uint64(st.Blocks)*512 < h.Size {
		t.Errorf("%d of %d bytes are reserved, %v", st.Blocks*512, h.Size, err)
	}
	for range 2 {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}
	if b.Gate().Gate.Load() != 0 {
		t.Error("the gate is not dead after Close")
	}
}

func TestCreateFails(t *testing.T) {
	dir := mapped(t)
	keep := newSegment(t, dir, testConfig(2))
	bad := errors.New("no")
	if _, err := Create(context.Background(), dir, testConfig(2),
		func(*Segment) error { return bad }); !errors.Is(err, bad) {
		t.Errorf("fill fails: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	if _, err := Create(ctx, dir, testConfig(2), func(*Segment) error { cancel(); return nil }); !errors.Is(err,
		context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, newName)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a failed Create leaves %s: %v", newName, err)
	}
	if state, _ := keep.Gate().State(); state != GateOpen {
		t.Errorf("a failed Create closed the gate of the old segment: %d", state)
	}
	// A creator that was killed leaves a file that nobody uses.
	if err := os.WriteFile(filepath.Join(dir, newName), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	newSegment(t, dir, testConfig(2))
}

// Each bad file is refused with a typed error that says what to do, before it
// is mapped, and is left as it is.
func TestBadFiles(t *testing.T) {
	dir := mapped(t)
	s := newSegment(t, dir, testConfig(2))
	size := int64(s.Header().Size)
	path := filepath.Join(dir, segmentName)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// edit changes the header and makes its checksum right again.
	edit := func(f func(h *Header)) []byte {
		h := new(Header)
		copy(h.bytes(), good)
		f(h)
		h.Checksum = h.checksum()
		return append(bytes.Clone(h.bytes()), good[HeaderSize:]...)
	}
	flip := func(at int) []byte {
		b := bytes.Clone(good)
		b[at] ^= 0x10
		return b
	}
	for _, tc := range []struct {
		name  string
		file  []byte
		want  error
		words string // in the message
	}{
		{"empty", nil, ErrCorrupt, "create the segment anew"},
		{"a few bytes", good[:100], ErrCorrupt, "create the segment anew"},
		{"the header alone", good[:HeaderSize], ErrCorrupt, "its header says"},
		{"a page short", good[:size-HeaderSize], ErrCorrupt, "its header says"},
		{"a page too long", append(bytes.Clone(good), make([]byte, HeaderSize)...), ErrCorrupt, "its header says"},
		{"zeros", make([]byte, size), ErrCorrupt, "not one of our segments"},
		{"foreign", bytes.Repeat([]byte("TDB file\n"), 10_000), ErrCorrupt, "not one of our segments"},
		{"a later version", edit(func(h *Header) { h.ABIMajor++; h.ABIMinor = 7 }), ErrIncompatible,
			fmt.Sprintf("is %d.7", ABIMajor+1)},
		{"an earlier version", edit(func(h *Header) { h.ABIMajor-- }), ErrIncompatible, "upgrade the segment's owner"},
		{"another layout", edit(func(h *Header) { h.LayoutHash++ }), ErrIncompatible, "same version"},
		{"a feature we don't know", edit(func(h *Header) { h.MustFeatures = 1 << 40 }), ErrIncompatible,
			"upgrade this program"},
		{"another boot", edit(func(h *Header) { h.BootID[3]++ }), ErrStale, "create the segment anew"},
		{"not ready", edit(func(h *Header) { h.ready = 0 }), ErrCorrupt, "never finished"},
		{"a flipped bit", flip(200), ErrCorrupt, "checksum"},
		{"another header size", edit(func(h *Header) { h.HeaderSize = 8192 }), ErrCorrupt, "header of 8192"},
		{"no slots", edit(func(h *Header) { h.Slots = 0 }), ErrCorrupt, "slots"},
		{"too many slots", edit(func(h *Header) { h.Slots = 5000 }), ErrCorrupt, "slots"},
		{"more slots than room", edit(func(h *Header) { h.Slots = 3 }), ErrCorrupt, "slots"},
		{"other slots", edit(func(h *Header) { h.SlotSize = 4096 }), ErrCorrupt, "slots"},
		{"an area outside", edit(func(h *Header) { h.Areas[AreaData].Off = 1 << 40 }), ErrCorrupt, "area"},
		{"an area too long", edit(func(h *Header) { h.Areas[AreaData].Size = 1<<64 - 4096 }), ErrCorrupt, "area"},
		{"an area over the header", edit(func(h *Header) { h.Areas[AreaNode].Off = 0 }), ErrCorrupt, "area"},
		{"an area at an odd place", edit(func(h *Header) { h.Areas[AreaNode].Off++ }), ErrCorrupt, "area"},
		{"a copy", good, ErrCopied, "mainz dump"},
		{"areas that overlap", edit(func(h *Header) { h.Areas[AreaData].Off = h.Areas[AreaNode].Off }), ErrCorrupt,
			"overlap"},
	} {
		other := filepath.Join(testenv.ShmDir(t), "v1")
		if err := MakeDir(other, Config{}); err != nil {
			t.Fatal(err)
		}
		bad := filepath.Join(other, segmentName)
		if err := os.WriteFile(bad, tc.file, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Attach(context.Background(), other, testLayout)
		if !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.words) || !strings.Contains(err.Error(), bad) {
			t.Errorf("%s: %v\n\twant %v, with %q", tc.name, err, tc.want, tc.words)
		}
		if b, err := os.ReadFile(bad); err != nil || !bytes.Equal(b, tc.file) {
			t.Errorf("%s: the file was changed (%v)", tc.name, err)
		}
		// Whatever it is, an owner can replace it.
		r, err := Create(context.Background(), other, testConfig(2), nil)
		if err != nil {
			t.Errorf("%s: replace: %v", tc.name, err)
			continue
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	var inc *IncompatibleError
	if _, err := Attach(context.Background(), dir, "another layout"); !errors.As(err, &inc) ||
		inc.What != "the layout" || inc.Creator == "" {
		t.Errorf("attach with another layout: %v", err)
	}
	// A minor version and features that may be ignored are.
	ok := edit(func(h *Header) { h.ABIMinor = 9; h.MayFeatures = 1 << 63 })
	if _, err := parseHeader(path, ok[:HeaderSize], uint64(size), testLayout, s.Header().BootID); err != nil {
		t.Errorf("what may be ignored: %v", err)
	}
}

// Where anybody could have put something, nothing is used.
func TestUnsafePlaces(t *testing.T) {
	top := filepath.Dir(filepath.Dir(filepath.Dir(mapped(t))))
	newSegment(t, filepath.Join(top, "good"), testConfig(2))
	good, err := os.ReadFile(filepath.Join(top, "good", segmentName))
	if err != nil {
		t.Fatal(err)
	}
	// place makes a directory with a good segment in it and spoils something.
	place := func(name string, spoil func(dir, file string) error) string {
		t.Helper()
		dir := filepath.Join(top, name)
		file := filepath.Join(dir, segmentName)
		err := errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(file, good, 0o600))
		if err == nil {
			err = spoil(dir, file)
		}
		if err != nil {
			t.Fatal(err)
		}
		return dir
	}
	type spot struct {
		name, dir string
		want      error
		words     string
	}
	spots := []spot{
		{"directory open to all", place("a", func(dir, _ string) error { return os.Chmod(dir, 0o777) }),
			ErrPermission, "chmod o-w"},
		{"sticky directory open to all", place("b", func(dir, _ string) error {
			return os.Chmod(dir, 0o777|os.ModeSticky)
		}), ErrPermission, "chmod o-w"},
		{"directory above open to all", place("c/d", func(dir, _ string) error {
			return os.Chmod(filepath.Dir(dir), 0o777)
		}), ErrPermission, "sticky"},
		{"link to a directory", place("e", func(dir, _ string) error {
			return errors.Join(os.Rename(dir, dir+"2"), os.Symlink(dir+"2", dir))
		}), ErrPermission, "symbolic link"},
		{"link above", filepath.Join(place("f/g", func(dir, _ string) error {
			return errors.Join(os.Rename(filepath.Dir(dir), top+"/f2"), os.Symlink(top+"/f2", filepath.Dir(dir)))
		})), ErrPermission, "symbolic link"},
		{"link to a segment", place("h", func(_, file string) error {
			return errors.Join(os.Remove(file), os.Symlink(filepath.Join(top, "good", segmentName), file))
		}), ErrPermission, "symbolic link"},
		{"segment open to all", place("i", func(_, file string) error { return os.Chmod(file, 0o666) }),
			ErrPermission, "chmod o-w"},
		{"fifo", place("j", func(_, file string) error {
			return errors.Join(os.Remove(file), unix.Mkfifo(file, 0o600))
		}), ErrCorrupt, "regular file"},
		{"a file for the directory", filepath.Join(top, "good", segmentName), nil, "not a directory"},
		{"no directory", filepath.Join(top, "none", "v1"), ErrNotRunning, "create it"},
	}
	if testenv.Root.Reason() == "" {
		const nobody = 65534
		spots = append(spots,
			spot{"somebody else's directory",
				place("k", func(dir, _ string) error { return os.Chown(dir, nobody, nobody) }), ErrPermission,
				"usermod"},
			spot{"a directory in somebody else's",
				place("l/m", func(dir, _ string) error { return os.Chown(filepath.Dir(dir), nobody, nobody) }),
				ErrPermission, "usermod"},
			spot{"somebody else's segment", place("n", func(_, file string) error {
				return os.Chown(file, nobody, nobody)
			}), ErrPermission, "usermod"},
		)
	} else {
		t.Log("without root nothing can belong to somebody else: three cases left out, TestOtherUser asks for the gate")
	}
	for _, sp := range spots {
		_, err := Attach(context.Background(), sp.dir, testLayout)
		if err == nil || sp.want != nil && !errors.Is(err, sp.want) || !strings.Contains(err.Error(), sp.words) {
			t.Errorf("%s: %v\n\twant %v, with %q", sp.name, err, sp.want, sp.words)
		}
	}
	// Create follows and uses them no more than Attach.
	for _, sp := range spots[:5] {
		if _, err := Create(context.Background(), sp.dir, testConfig(2), nil); !errors.Is(err, ErrPermission) {
			t.Errorf("%s: create: %v", sp.name, err)
		}
	}
	link := place("o", func(dir, file string) error {
		return errors.Join(os.Remove(file), os.Symlink(filepath.Join(top, "good", segmentName),
			filepath.Join(dir, newName)),
			os.Symlink(filepath.Join(top, "good", segmentName), filepath.Join(dir, lockName)))
	})
	if _, err := Create(context.Background(), link, testConfig(2), nil); !errors.Is(err, ErrPermission) {
		t.Errorf("create with a link for a lock file: %v", err)
	}
	if now, err := os.ReadFile(filepath.Join(top, "good", segmentName)); err != nil ||
		!bytes.Equal(now[:HeaderSize], good[:HeaderSize]) {
		t.Errorf("a segment was changed through a link (%v)", err)
	}
}

// Another user may attach if he is of the group, and is told so if not.
func TestOtherUser(t *testing.T) {
	dir := mapped(t)
	testenv.Need(t, testenv.Root)
	const gid = 12345
	top := filepath.Dir(filepath.Dir(filepath.Dir(dir)))
	if err := os.Chmod(top, 0o755); err != nil {
		t.Fatal(err)
	}
	cfg := testConfig(4)
	cfg.Group = fmt.Sprint(gid)
	s := newSegment(t, dir, cfg)
	c := join(t, s, nil)
	public := testenv.Program(t, "program")
	stranger := spawnExe(t, public, "attach", dir,
		&syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 54321, Gid: 54321}})
	stranger.says("refused true")
	if msg := stranger.out.Text(); !strings.Contains(msg, "usermod -aG 12345 54321") {
		t.Errorf("a stranger is told %q", msg)
	}
	stranger.end()
	member := spawnExe(t, public, "attach", dir,
		&syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 54321, Gid: 54321, Groups: []uint32{gid}}})
	member.says("attached")
	member.end()
	// We can recover him, and he us.
	if n, err := c.RecoverAll(); n != 1 || err != nil {
		t.Errorf("recovered %d, %v", n, err)
	}
	// Whom we can't see is dead when his lock in the file has gone.
	dead := spawn(t, "join", dir, nil)
	var slot uint32
	dead.says("joined", &slot)
	sl := s.Slot(slot)
	sl.Place.Store(sl.Place.Load() + 1)
	if err := c.fence(slot, sl); err != errNotYet {
		t.Errorf("a living process of another namespace: %v", err)
	}
	dead.kill()
	if err := c.fence(slot, sl); err != nil {
		t.Errorf("a dead process of another namespace: %v", err)
	}
}

// Two nodes with groups of their own may lie under one directory: the members of each
// come to theirs, and to no other. Nobody but root may make anything beside them.
func TestTwoGroups(t *testing.T) {
	dir := mapped(t)
	testenv.Need(t, testenv.Root)
	top := filepath.Dir(filepath.Dir(filepath.Dir(dir)))
	if err := os.Chmod(top, 0o755); err != nil {
		t.Fatal(err)
	}
	public := testenv.Program(t, "program")
	old := unix.Umask(0o077) // the modes must not depend on it
	defer unix.Umask(old)
	dirs := map[uint32]string{12345: filepath.Join(top, "nodes", "a", "v1"),
		12346: filepath.Join(top, "nodes", "b", "v1")}
	for gid, dir := range dirs {
		cfg := testConfig(4)
		cfg.Group = fmt.Sprint(gid)
		newSegment(t, dir, cfg)
	}
	for gid := range dirs {
		for of, dir := range dirs {
			c := spawnExe(t, public, "attach", dir,
				&syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 54321, Gid: 54321, Groups: []uint32{gid}}})
			if gid == of {
				c.says("attached")
			} else {
				c.says("refused true")
			}
			c.end()
		}
	}
	for _, d := range []string{filepath.Join(top, "nodes"), filepath.Join(top, "nodes", "a")} {
		if st, err := os.Stat(d); err != nil || st.Mode().Perm()&0o022 != 0 {
			t.Errorf("%s has mode %v (%v)", d, st.Mode(), err)
		}
	}
}

// No name is no name of the working directory.
func TestEmptyDir(t *testing.T) {
	mapped(t)
	_, err := Attach(context.Background(), "", testLayout)
	_, err2 := LockOwner("")
	if err == nil || err2 == nil || MakeDir("", Config{}) == nil {
		t.Errorf("%v, %v", err, err2)
	}
}

// A ramdisk that is too small is an error when the segment is made or
// attached, never a SIGBUS later.
func TestFullRamdisk(t *testing.T) {
	testenv.Need(t, testenv.Linux, testenv.NoRace)
	mnt := testenv.Tmpfs(t, "size=8m,mode=700")
	dir := filepath.Join(mnt, "v1")
	cfg := testConfig(2)
	cfg.Size = 16 << 20
	check := func(what string, err error) {
		t.Helper()
		var no *NoSpaceError
		if !errors.Is(err, ErrNoSpace) || !errors.As(err, &no) || no.Mount != mnt || no.Have >= no.Need ||
			!strings.Contains(no.Fix, "remount,size=") {
			t.Fatalf("%s: %v", what, err)
		}
		t.Log(err)
	}
	_, err := Create(context.Background(), dir, cfg, nil)
	check("create 16 MiB on 8 MiB", err)
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("left behind: %v, %v", left, err)
	}

	cfg.Size = 4 << 20
	s := newSegment(t, dir, cfg)
	c := join(t, s, nil)
	// The old one has a client, so both have to fit.
	cfg.Size = 5 << 20
	_, err = Create(context.Background(), dir, cfg, nil)
	check("replace a used 4 MiB by 5 MiB on 8 MiB", err)
	if state, _ := s.Gate().State(); state != GateOpen {
		t.Error("the old segment was closed for one that could not be made")
	}
	if err := c.Leave(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	// Nobody uses it now: it makes room.
	s = newSegment(t, dir, cfg)

	// The disk is full and somebody punched a hole: refused when attached.
	f, err := os.OpenFile(filepath.Join(dir, segmentName), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 1<<20,
		1<<20); err != nil {
		t.Fatal(err)
	}
	fill, err := os.Create(filepath.Join(mnt, "fill"))
	if err != nil {
		t.Fatal(err)
	}
	defer fill.Close()
	for chunk := make([]byte, 1<<16); err == nil; {
		_, err = fill.Write(chunk)
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	_, err = Attach(context.Background(), dir, testLayout)
	if !errors.Is(err, ErrNoSpace) {
		t.Errorf("attach to a segment with a hole on a full disk: %v", err)
	}
	// With the disk full nothing at all can be made.
	if _, err := Create(context.Background(), filepath.Join(mnt, "v2"), cfg, nil); !errors.Is(err, ErrNoSpace) {
		t.Errorf("create on a full disk: %v", err)
	}
}

func TestHugePages(t *testing.T) {
	testenv.Need(t, testenv.Linux, testenv.NoRace, testenv.Mount)
	cfg := testConfig(2)
	cfg.Size = 8 << 20
	for _, tc := range []struct {
		opts string
		ask  HugePages
		must bool // be had, if the kernel has any
	}{
		{"huge=never", HugeAuto, false},
		{"huge=never", HugeRequire, false},
		{"huge=always", HugeAuto, true},
		{"huge=always", HugeRequire, true},
		{"huge=advise", HugeAuto, true},
		{"huge=advise", HugeRequire, true},
	} {
		mnt := testenv.Tmpfs(t, "size=64m,mode=700,"+tc.opts)
		cfg.HugePages = tc.ask
		s, err := Create(context.Background(), filepath.Join(mnt, "v1"), cfg, nil)
		if err != nil {
			if tc.ask == HugeRequire && errors.Is(err, ErrNotSupported) &&
				strings.Contains(err.Error(), "remount,huge=always") {
				t.Logf("%s, asked %d: %v", tc.opts, tc.ask, err)
				if tc.must {
					t.Errorf("%s: required, and not had", tc.opts)
				}
				continue
			}
			t.Errorf("%s, asked %d: %v", tc.opts, tc.ask, err)
			continue
		}
		b, err := Attach(context.Background(), filepath.Join(mnt, "v1"), testLayout)
		if err != nil {
			t.Fatal(err)
		}
		got, there := s.Huge(), b.Huge()
		t.Logf("%s, asked %d: %+v, attached %+v", tc.opts, tc.ask, got, there)
		if tc.ask == HugeRequire && !tc.must || tc.must && got.Bytes != cfg.Size || !tc.must && got.Bytes != 0 ||
			got.Asked != tc.ask {
			t.Errorf("%s, asked %d: %+v", tc.opts, tc.ask, got)
		}
		if err := errors.Join(b.Close(), s.Close()); err != nil {
			t.Error(err)
		}
	}
}

// A pool of huge pages without pages is a full ramdisk.
func TestHugetlbfsEmpty(t *testing.T) {
	testenv.Need(t, testenv.Linux, testenv.NoRace)
	mnt := testenv.Hugetlbfs(t)
	cfg := testConfig(2)
	cfg.Size = 1 << 40
	_, err := Create(context.Background(), filepath.Join(mnt, "v1"), cfg, nil)
	if !errors.Is(err, ErrNoSpace) || !strings.Contains(err.Error(), "vm.nr_hugepages") {
		t.Errorf("1 TiB on hugetlbfs: %v", err)
	}
}

func TestHugetlbfs(t *testing.T) {
	testenv.Need(t, testenv.Linux, testenv.NoRace, testenv.HugePool)
	mnt := testenv.Hugetlbfs(t)
	cfg := testConfig(2)
	cfg.Size = 5 << 20
	cfg.HugePages = HugeRequire
	dir := filepath.Join(mnt, "v1")
	s := newSegment(t, dir, cfg)
	if got := s.Huge(); got.Bytes != 6<<20 || got.PageSize != 2<<20 {
		t.Errorf("5 MiB on hugetlbfs: %+v", got)
	}
	if ram, name := s.OnRamdisk(); !ram || name != "hugetlbfs" {
		t.Errorf("on %s, a ramdisk: %v", name, ram)
	}
	c := join(t, s, repairArea)
	h := spawn(t, "hold", dir, nil)
	var slot uint32
	h.says("holds", &slot)
	h.kill()
	if err := areaOf(s).latch.Lock(c, c.HandleID(0)); err != nil {
		t.Fatal(err)
	}
	if a := areaOf(s); a.a.Load() != 1 || a.b.Load() != 1 {
		t.Errorf("counters %d and %d, want 1 and 1", a.a.Load(), a.b.Load())
	}
}

func TestOnDisk(t *testing.T) {
	testenv.Need(t, testenv.Linux, testenv.NoRace)
	wd, err := os.MkdirTemp(".", "disk-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(wd)
	wd, err = filepath.Abs(wd)
	if err == nil {
		wd, err = filepath.EvalSymlinks(wd)
	}
	if err != nil {
		t.Fatal(err)
	}
	s, err := Create(context.Background(), filepath.Join(wd, "v1"), testConfig(2), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ram, name := s.OnRamdisk()
	if ram != (s.Warning() == "") {
		t.Errorf("on %s, a ramdisk: %v, warning %q", name, ram, s.Warning())
	}
	t.Logf("%s: %q", name, s.Warning())
	c := join(t, s, repairArea)
	if err := areaOf(s).latch.Lock(c, c.HandleID(0)); err != nil {
		t.Fatal(err)
	}
	areaOf(s).latch.Unlock(c.HandleID(0))
	if err := c.Leave(); err != nil {
		t.Fatal(err)
	}
}

func TestOwner(t *testing.T) {
	dir := mapped(t)
	if err := MakeDir(dir, Config{}); err != nil {
		t.Fatal(err)
	}
	own := spawn(t, "own", dir, nil)
	var pid int
	own.says("owns", &pid)
	_, err := LockOwner(dir)
	var in *InUseError
	if !errors.Is(err, ErrInUse) || !errors.As(err, &in) || in.PID != pid || !strings.HasPrefix(in.Name, "shm.test") {
		t.Errorf("second owner: %v", err)
	}
	if _, err := Create(context.Background(), dir, testConfig(1), nil); !errors.Is(err, ErrInUse) {
		t.Errorf("create in somebody's directory: %v", err)
	}
	own.kill()
	l, err := LockOwner(dir)
	if err != nil {
		t.Fatalf("after the owner's death: %v", err)
	}
	// The owner creates under its own lock, others still can't own.
	newSegment(t, dir, testConfig(1))
	if _, err := LockOwner(dir); !errors.Is(err, ErrInUse) {
		t.Errorf("second owner in the same process: %v", err)
	}
	for range 2 {
		if err := l.Release(); err != nil {
			t.Error(err)
		}
	}
	again := spawn(t, "own", dir, nil)
	again.says("owns")
	again.tell()
	again.end()
	// Without an owner, everybody may create; the lock is held meanwhile only.
	newSegment(t, dir, testConfig(1))
	l, err = LockOwner(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Release(); err != nil {
		t.Error(err)
	}
}

// Who attaches touches a few pages, however large the segment is; the owner touches
// all of them. A file that is not reserved in full is filled, so that no access to it
// can fail later.
func TestAttachTouchesLittle(t *testing.T) {
	dir := mapped(t)
	ctx := context.Background()
	const pages = 16384
	cfg := testConfig(5)
	cfg.Size = pages * 4096
	cfg.HugePages = HugeNever
	s, err := Create(ctx, dir, cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	touched := func() int64 {
		t.Helper()
		var before, after unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &before); err != nil {
			t.Fatal(err)
		}
		b, err := Attach(ctx, dir, testLayout)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Getrusage(unix.RUSAGE_SELF, &after); err != nil {
			t.Fatal(err)
		}
		for off := Offset(0); off < cfg.Size; off += 4096 {
			_ = At[Word64](b.r, off).Load()
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		return after.Minflt - before.Minflt
	}
	if n := touched(); n > pages/8 {
		t.Errorf("an attach to %d pages has %d faults", pages, n)
	}
	if ok, name := s.OnRamdisk(); !ok || s.Huge().Bytes > 0 {
		t.Logf("%s, huge pages: the rest says nothing there", name)
		return
	}
	lock, err := LockOwner(dir)
	if err != nil {
		t.Fatal(err)
	}
	if n := touched(); n < pages/2 {
		t.Errorf("the owner's attach to %d pages has %d faults", pages, n)
	}
	if err := lock.Release(); err != nil {
		t.Fatal(err)
	}
	hole := unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	if err := unix.Fallocate(int(s.file.Fd()), uint32(hole), pages*2048, pages*2048); err != nil {
		t.Fatal(err)
	}
	if n := touched(); n < pages/4 {
		t.Errorf("an attach to a file with holes has %d faults", n)
	}
}
