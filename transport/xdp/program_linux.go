package xdp

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"github.com/mainzdb/mainz/transport"
)

// Counters of the program, by index.
const (
	cntRedirected = iota
	cntNoSocket
	cntProbe // passed to the kernel's socket
	cntStranger
	cntMalformed
	cntForeign
	numCounters
)

const (
	xdpDrop     = 1
	xdpPass     = 2
	xdpRedirect = 4

	maxMembers = 4096
	// memberSlots is for two whole lists: new members come in before old ones go out.
	memberSlots = 2 * maxMembers
	// nearSlots is how many members the program finds without its hash table: one for
	// each last byte of an address. Nodes of one network have different ones.
	nearSlots = 256
)

// filterProgram is the XDP program with its maps.
type filterProgram struct {
	prog     *ebpf.Program
	sockets  *ebpf.Map // receive queue → AF_XDP socket
	members  *ebpf.Map // IPv6 or mapped IPv4 address → 1
	counters *ebpf.Map
	near     *ebpf.Map         // some of members, by the last byte of the address; zeros: none
	passes   *ebpf.Map         // one counter: what of ours was passed to the kernel
	nearMem  []byte            // near, in our memory
	mapped   []byte            // passes, in our memory
	present  map[[16]byte]bool // what is in members
}

// loadProgram makes and loads the program. frags lets the kernel attach it to
// interfaces whose packets do not fit one page.
func loadProgram(listen netip.AddrPort, f transport.Filter, queues int, frags bool) (*filterProgram, error) {
	p := &filterProgram{present: map[[16]byte]bool{}}
	for _, m := range []struct {
		to   **ebpf.Map
		spec ebpf.MapSpec
	}{
		{&p.sockets, ebpf.MapSpec{Name: "mainz_sockets", Type: ebpf.XSKMap, KeySize: 4, ValueSize: 4,
			MaxEntries: uint32(queues)}},
		{&p.members, ebpf.MapSpec{Name: "mainz_members", Type: ebpf.Hash, KeySize: 16, ValueSize: 4,
			MaxEntries: memberSlots}},
		{&p.near, ebpf.MapSpec{Name: "mainz_near", Type: ebpf.Array, KeySize: 4, ValueSize: nearSlots * 16,
			MaxEntries: 1, Flags: unix.BPF_F_MMAPABLE}},
		{&p.counters, ebpf.MapSpec{Name: "mainz_counters", Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: 8,
			MaxEntries: numCounters}},
		{&p.passes, ebpf.MapSpec{Name: "mainz_passes", Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1,
			Flags: unix.BPF_F_MMAPABLE}},
	} {
		x, err := ebpf.NewMap(&m.spec)
		if err != nil {
			p.close()
			return nil, fmt.Errorf("make map %s: %w", m.spec.Name, err)
		}
		*m.to = x
	}
	var err error
	if p.mapped, err = unix.Mmap(p.passes.FD(), 0, os.Getpagesize(), unix.PROT_READ, unix.MAP_SHARED); err != nil {
		p.close()
		return nil, fmt.Errorf("map mainz_passes: %w", err)
	}
	if p.nearMem, err = unix.Mmap(p.near.FD(), 0, nearSlots*16, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_SHARED); err != nil {
		p.close()
		return nil, fmt.Errorf("map mainz_near: %w", err)
	}
	flags := uint32(0)
	if frags {
		flags = unix.BPF_F_XDP_HAS_FRAGS
	}
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "mainz_filter", Type: ebpf.XDP, Flags: flags, License: "MIT",
		Instructions: p.instructions(listen, f, frags),
	})
	if err != nil {
		p.close()
		return nil, fmt.Errorf("load program: %w", err)
	}
	p.prog = prog
	return p, nil
}

func (p *filterProgram) close() {
	if p == nil {
		return
	}
	p.prog.Close()
	p.sockets.Close()
	p.members.Close()
	p.counters.Close()
	p.near.Close()
	p.passes.Close()
	for _, m := range []*[]byte{&p.mapped, &p.nearMem} {
		if *m != nil {
			_ = unix.Munmap(*m)
			*m = nil
		}
	}
}

// native16 and native32 are what a load of these bytes gives on this machine.
func native16(v uint16) int32 {
	return int32(binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v)))
}
func native32(b []byte) int32 { return int32(binary.NativeEndian.Uint32(b)) }

// instructions is the filter. What is not a datagram for our port on our
// address is passed on after a few comparisons; options, extension headers and
// fragments are too: the kernel understands them, and our socket there gets
// what comes of it.
//
// R6 is the context, R7 the Ethernet header (less the VLAN tag's four bytes),
// R8 the packet's end, R9 the length that the UDP header claims.
func (p *filterProgram) instructions(listen netip.AddrPort, f transport.Filter, frags bool) asm.Instructions {
	const (
		key     = -16 // 16 bytes of source address
		counter = -20
		tag     = -24 // bytes of VLAN tag
	)
	addr := listen.Addr().Unmap()
	v6 := addr.Is6()
	ether, ipLen := uint16(etherIP4), int16(ip4Len)
	if v6 {
		ether, ipLen = etherIP6, ip6Len
	}
	udp := ethLen + ipLen
	payload := udp + udpLen

	ins := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMem(asm.R7, asm.R6, 0, asm.Word),
		asm.LoadMem(asm.R8, asm.R6, 4, asm.Word),
		asm.StoreImm(asm.RFP, tag, 0, asm.Word),
		asm.Mov.Reg(asm.R2, asm.R7),
		asm.Add.Imm(asm.R2, ethLen+vlanLen),
		asm.JGT.Reg(asm.R2, asm.R8, "pass"),
		asm.LoadMem(asm.R3, asm.R7, 12, asm.Half),
		asm.JEq.Imm(asm.R3, native16(ether8021), "tagged"),
		asm.JNE.Imm(asm.R3, native16(ether88a8), "ip"),
		asm.StoreImm(asm.RFP, tag, vlanLen, asm.Word).WithSymbol("tagged"),
		asm.Add.Imm(asm.R7, vlanLen),
		asm.LoadMem(asm.R3, asm.R7, 12, asm.Half),
		asm.JNE.Imm(asm.R3, native16(ether), "pass").WithSymbol("ip"),
		asm.Mov.Reg(asm.R2, asm.R7),
		asm.Add.Imm(asm.R2, int32(payload)),
		asm.JGT.Reg(asm.R2, asm.R8, "pass"),
	}
	// Is it ours?
	if v6 {
		a := addr.As16()
		ins = append(ins,
			asm.LoadMem(asm.R3, asm.R7, ethLen+6, asm.Byte),
			asm.JNE.Imm(asm.R3, protoUDP, "pass"))
		for i := int16(0); i < 16; i += 4 {
			ins = append(ins,
				asm.LoadMem(asm.R3, asm.R7, ethLen+24+i, asm.Word),
				asm.JNE.Imm32(asm.R3, native32(a[i:]), "pass"))
		}
	} else {
		a := addr.As4()
		ins = append(ins,
			asm.LoadMem(asm.R3, asm.R7, ethLen, asm.Byte),
			asm.JNE.Imm(asm.R3, 0x45, "pass"),
			asm.LoadMem(asm.R3, asm.R7, ethLen+9, asm.Byte),
			asm.JNE.Imm(asm.R3, protoUDP, "pass"),
			asm.LoadMem(asm.R3, asm.R7, ethLen+6, asm.Half),
			asm.And.Imm(asm.R3, native16(0x3fff)),
			asm.JNE.Imm(asm.R3, 0, "pass"),
			asm.LoadMem(asm.R3, asm.R7, ethLen+16, asm.Word),
			asm.JNE.Imm32(asm.R3, native32(a[:]), "pass"))
	}
	ins = append(ins,
		asm.LoadMem(asm.R3, asm.R7, udp+2, asm.Half),
		asm.JNE.Imm(asm.R3, native16(listen.Port()), "pass"))

	// It is. Do the lengths fit?
	lengthAt, lengthMore := int16(ethLen+2), int32(ip4Len)
	if v6 {
		lengthAt, lengthMore = ethLen+4, 0
	}
	ins = append(ins,
		asm.LoadMem(asm.R9, asm.R7, udp+4, asm.Half),
		asm.HostTo(asm.BE, asm.R9, asm.Half),
		asm.JLT.Imm(asm.R9, udpLen, "malformed"),
		asm.LoadMem(asm.R3, asm.R7, lengthAt, asm.Half),
		asm.HostTo(asm.BE, asm.R3, asm.Half),
		asm.Mov.Reg(asm.R4, asm.R9),
		asm.Add.Imm(asm.R4, lengthMore),
		asm.JLT.Reg(asm.R3, asm.R4, "malformed"),
	)
	if frags {
		// Only the first page lies between R7 and R8.
		ins = append(ins,
			asm.Mov.Reg(asm.R1, asm.R6),
			asm.FnXdpGetBuffLen.Call(),
			asm.LoadMem(asm.R3, asm.RFP, tag, asm.Word),
			asm.Add.Reg(asm.R3, asm.R9),
			asm.Add.Imm(asm.R3, int32(udp)),
			asm.JLT.Reg(asm.R0, asm.R3, "malformed"),
		)
	} else {
		ins = append(ins,
			asm.Mov.Reg(asm.R2, asm.R7),
			asm.Add.Imm(asm.R2, int32(udp)),
			asm.Add.Reg(asm.R2, asm.R9),
			asm.JGT.Reg(asm.R2, asm.R8, "malformed"),
		)
	}
	// Is the source a member?
	if v6 {
		for i := int16(0); i < 16; i += 4 {
			ins = append(ins,
				asm.LoadMem(asm.R3, asm.R7, ethLen+8+i, asm.Word),
				asm.StoreMem(asm.RFP, key+i, asm.R3, asm.Word))
		}
	} else {
		ins = append(ins,
			asm.StoreImm(asm.RFP, key, 0, asm.Word),
			asm.StoreImm(asm.RFP, key+4, 0, asm.Word),
			asm.StoreImm(asm.RFP, key+8, int64(native32([]byte{0, 0, 0xff, 0xff})), asm.Word),
			asm.LoadMem(asm.R3, asm.R7, ethLen+12, asm.Word),
			asm.StoreMem(asm.RFP, key+12, asm.R3, asm.Word))
	}
	lastByte := int16(ethLen + 15) // of the source
	if v6 {
		lastByte = ethLen + 8 + 15
	}
	ins = append(ins,
		// A look at near saves most of them the hash table: 2 % of the way of 64 bytes
		// over veth. Its slots are two words, the second one never 0 if there is one.
		asm.LoadMem(asm.R2, asm.R7, lastByte, asm.Byte),
		asm.LSh.Imm(asm.R2, 4),
		asm.LoadMapValue(asm.R1, p.near.FD(), 0),
		asm.Add.Reg(asm.R1, asm.R2),
		asm.LoadMem(asm.R3, asm.RFP, key+8, asm.DWord),
		asm.JEq.Imm(asm.R3, 0, "far"),
		asm.LoadMem(asm.R2, asm.R1, 8, asm.DWord),
		asm.JNE.Reg(asm.R2, asm.R3, "far"),
		asm.LoadMem(asm.R2, asm.R1, 0, asm.DWord),
		asm.LoadMem(asm.R3, asm.RFP, key, asm.DWord),
		asm.JEq.Reg(asm.R2, asm.R3, "member"),
		asm.LoadMapPtr(asm.R1, p.members.FD()).WithSymbol("far"),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, key),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "stranger"),
	)
	// A probe? It passes the filter; one of kind kernel goes to the kernel.
	ins = append(ins,
		asm.JLT.Imm(asm.R9, udpLen+transport.ProbeLen, "filter").WithSymbol("member"),
		asm.Mov.Reg(asm.R2, asm.R7),
		asm.Add.Imm(asm.R2, int32(payload)+5),
		asm.JGT.Reg(asm.R2, asm.R8, "filter"),
		asm.LoadMem(asm.R3, asm.R7, payload, asm.Word),
		asm.JNE.Imm32(asm.R3, native32([]byte(transport.ProbeMagic)), "filter"),
		asm.LoadMem(asm.R3, asm.R7, payload+4, asm.Byte),
		asm.JEq.Imm(asm.R3, transport.ProbeKernel, "probe"),
		asm.JEq.Imm(asm.R3, transport.ProbeKernelAnswer, "probe"),
		asm.JNE.Imm(asm.R9, udpLen+transport.ProbeLen, "filter"),
		asm.JEq.Imm(asm.R3, transport.ProbePath, "redirect"),
		asm.JEq.Imm(asm.R3, transport.ProbePathAnswer, "redirect"),

		asm.JLT.Imm(asm.R9, udpLen+int32(max(f.MinLen, len(f.Prefix))), "malformed").WithSymbol("filter"),
	)
	if n := len(f.Prefix); n > 0 {
		ins = append(ins,
			asm.Mov.Reg(asm.R2, asm.R7),
			asm.Add.Imm(asm.R2, int32(payload)+int32(n)),
			asm.JGT.Reg(asm.R2, asm.R8, "malformed"))
		for i, b := range f.Prefix {
			ins = append(ins,
				asm.LoadMem(asm.R3, asm.R7, payload+int16(i), asm.Byte),
				asm.JNE.Imm(asm.R3, int32(b), "foreign"))
		}
	}
	ins = append(ins,
		asm.LoadMapPtr(asm.R1, p.sockets.FD()).WithSymbol("redirect"),
		asm.LoadMem(asm.R2, asm.R6, 16, asm.Word), // rx_queue_index
		asm.Mov.Imm(asm.R3, xdpPass),
		asm.FnRedirectMap.Call(),
		asm.Mov.Reg(asm.R9, asm.R0),
		asm.StoreImm(asm.RFP, counter, cntRedirected, asm.Word),
		asm.JEq.Imm(asm.R0, xdpRedirect, "count"),
		asm.StoreImm(asm.RFP, counter, cntNoSocket, asm.Word),
		asm.Ja.Label("count"),
	)
	for _, end := range []struct {
		label        string
		cnt, verdict int
	}{
		{"probe", cntProbe, xdpPass}, {"stranger", cntStranger, xdpDrop},
		{"malformed", cntMalformed, xdpDrop}, {"foreign", cntForeign, xdpDrop},
	} {
		if end.label == "foreign" && len(f.Prefix) == 0 {
			continue // the verifier refuses what nothing jumps to
		}
		ins = append(ins,
			asm.StoreImm(asm.RFP, counter, int64(end.cnt), asm.Word).WithSymbol(end.label),
			asm.Mov.Imm(asm.R9, int32(end.verdict)),
			asm.Ja.Label("count"))
	}
	return append(ins,
		asm.LoadMapPtr(asm.R1, p.counters.FD()).WithSymbol("count"),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, counter),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "done"),
		asm.LoadMem(asm.R1, asm.R0, 0, asm.DWord),
		asm.Add.Imm(asm.R1, 1),
		asm.StoreMem(asm.R0, 0, asm.R1, asm.DWord),
		// Who looks at the rings learns from it that the kernel got something.
		asm.JNE.Imm(asm.R9, xdpPass, "done"),
		asm.LoadMapValue(asm.R1, p.passes.FD(), 0),
		asm.Mov.Imm(asm.R2, 1),
		asm.AddAtomic.Mem(asm.R1, asm.R2, asm.DWord, 0),
		asm.Mov.Reg(asm.R0, asm.R9).WithSymbol("done"),
		asm.Return(),
		asm.Mov.Imm(asm.R0, xdpPass).WithSymbol("pass"),
		asm.Return(),
	)
}

// setMembers makes members hold exactly these addresses. New ones come in
// before old ones go out.
func (p *filterProgram) setMembers(peers []transport.Peer) error {
	if len(peers) > maxMembers {
		return fmt.Errorf("%w: %d of them, AF_XDP takes %d", transport.ErrPeer, len(peers), maxMembers)
	}
	want := make(map[[16]byte]bool, len(peers))
	var near [nearSlots][16]byte
	for _, q := range peers {
		a := q.Addr.Addr().As16()
		want[a] = true
		near[a[15]] = a
	}
	for a := range want {
		if !p.present[a] {
			if err := p.members.Put(a, uint32(1)); err != nil {
				return fmt.Errorf("add member %v: %w", netip.AddrFrom16(a).Unmap(), err)
			}
			p.present[a] = true
		}
	}
	p.setNear(&near)
	for a := range p.present {
		if !want[a] {
			if err := p.members.Delete(a); err != nil {
				return fmt.Errorf("remove member %v: %w", netip.AddrFrom16(a).Unmap(), err)
			}
			delete(p.present, a)
		}
	}
	return nil
}

// count reads the counters, added up over the CPUs.
func (p *filterProgram) count() (sums [numCounters]uint64) {
	var per []uint64
	for i := range sums {
		if p.counters.Lookup(uint32(i), &per) != nil {
			continue
		}
		for _, v := range per {
			sums[i] += v
		}
	}
	return sums
}
