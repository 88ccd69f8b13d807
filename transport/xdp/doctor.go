package xdp

// Examination is what `mainz doctor net` finds out about an interface. Nothing
// is changed by it.
type Examination struct {
	Address      string   `json:"address"`
	Interface    string   `json:"interface"`
	Driver       string   `json:"driver"`
	Up           bool     `json:"up"`
	MTU          int      `json:"mtu"`
	Frame        int      `json:"frame_bytes"` // of the UMEM, with zero copy where the driver has that
	MultiBuffer  bool     `json:"multi_buffer"`
	RxQueues     int      `json:"rx_queues"`
	TxQueues     int      `json:"tx_queues"`
	RxRing       int      `json:"rx_ring"` // 0: the driver does not tell
	RxRingMax    int      `json:"rx_ring_max"`
	TxRing       int      `json:"tx_ring"`
	TxRingMax    int      `json:"tx_ring_max"`
	Program      uint32   `json:"attached_program"` // 0: none
	Features     []string `json:"xdp_features"`     // that the driver says it has; null: the kernel does not tell
	Kernel       string   `json:"kernel"`
	AFXDP        string   `json:"af_xdp"` // "ok", or why not
	BPF          string   `json:"bpf"`
	Capabilities []string `json:"missing_capabilities"`
	MemlockBytes uint64   `json:"memlock_bytes"`
	NeedBytes    uint64   `json:"needed_bytes"`
	Order        []string `json:"order"`    // the ways that auto would try
	Expected     string   `json:"expected"` // the one that it should take, by all of the above
	Chosen       string   `json:"chosen"`   // with a trial: what auto took
	Advice       []string `json:"advice"`

	features uint64 // the same as bits
	mayLock  bool   // CAP_IPC_LOCK
}
