//go:build !race && !shmsim

#include "textflag.h"
#include "go_asm.h"

DATA tagField<>+0(SB)/8, $0x1ffe000000000
GLOBL tagField<>(SB), RODATA|NOPTR, $8

// What both functions begin with. In: DI probe, R8 hash. Out: R13 the first
// entry with the tag, BX its word, CX its class, DX the size of such blocks, SI
// the block, R12 its seq. All seven tags are compared at once; the second load
// sees the fourth again. Jumps to no if no entry has the tag, or if what it
// names does not lie in the data area.
#define FIND \
	MOVQ	R8, AX; \
	ANDQ	probe_mask(DI), AX; \
	SHLQ	$6, AX; \
	ADDQ	probe_table(DI), AX; \
	SHRQ	$52, R8; \
	SHLQ	$37, R8; \
	VMOVQ	R8, X0; \
	VPBROADCASTQ	X0, Y0; \
	VPBROADCASTQ	tagField<>(SB), Y1; \
	VPXOR	Y3, Y3, Y3; \
	VPXOR	8(AX), Y0, Y2; \
	VPXOR	32(AX), Y0, Y4; \
	VPAND	Y1, Y2, Y2; \
	VPAND	Y1, Y4, Y4; \
	VPCMPEQQ	Y3, Y2, Y2; \
	VPCMPEQQ	Y3, Y4, Y4; \
	VMOVMSKPD	Y2, R11; \
	VMOVMSKPD	Y4, R12; \
	SHLL	$3, R12; \
	ORL	R12, R11; \
	BSFL	R11, R11; \
	JZ	no; \
	LEAQ	8(AX)(R11*8), R13; \
	MOVQ	(R13), BX; \
	MOVQ	BX, CX; \
	SHRQ	$32, CX; \
	ANDL	$31, CX; \
	LEAQ	·classSizes(SB), DX; \
	MOVL	(DX)(CX*4), DX; \
	MOVL	BX, SI; \
	SHLQ	$6, SI; \
	MOVQ	SI, R8; \
	SUBQ	probe_start(DI), R8; \
	MOVQ	probe_size(DI), R11; \
	SUBQ	DX, R11; \
	CMPQ	R8, R11; \
	JHI	no; \
	ADDQ	probe_base(DI), SI; \
	MOVQ	(SI), R12

// The key at SI's block is that at R15, of R14 bytes: two words that may overlap.
#define SAMEKEY \
	MOVQ	48(SI), DX; \
	CMPQ	DX, (R15); \
	JNE	no; \
	MOVQ	40(SI)(R14*1), DX; \
	CMPQ	DX, -8(R15)(R14*1); \
	JNE	no

// What both reads do. In: DI probe, R8 hash, R15 key, R14 its length. Beside
// FIND's registers: R10 is the gate's word at R9, CX later the data's length.
#define READ(ret) \
	MOVQ	probe_gate(DI), R9; \
	MOVQ	(R9), R10; \
	FIND; \
	/* Key length and class fit, it is ours and not empty. */ \
	SHLL	$16, CX; \
	ORL	R14, CX; \
	ORL	$0x1000000, CX; \
	MOVL	32(SI), R11; \
	ANDL	$0x9ffffff, R11; \
	CMPL	R11, CX; \
	JNE	no; \
	/* Key and data fit into the block, the data into dst. */ \
	MOVL	24(SI), CX; \
	LEAQ	7(R14), R11; \
	ANDQ	$~7, R11; \
	LEAQ	48(R11)(CX*1), R8; \
	CMPQ	R8, DX; \
	JHI	no; \
	SAMEKEY; \
	MOVQ	dst+8(FP), DX; \
	MOVQ	8(DX), R8; \
	MOVQ	16(DX), R15; \
	SUBQ	R8, R15; \
	CMPQ	CX, R15; \
	JHI	no; \
	ADDQ	0(DX), R8; \
	/* Copy. */ \
	LEAQ	48(SI)(R11*1), R11; \
	CMPQ	CX, $32; \
	JB	small; \
	CMPQ	CX, $1024; \
	JA	no; \
	LEAQ	-32(CX), R15; \
	VMOVDQU	(R11)(R15*1), Y5; \
	VMOVDQU	Y5, (R8)(R15*1); \
	XORL	DX, DX; \
more: \
	VMOVDQU	(R11)(DX*1), Y4; \
	VMOVDQU	Y4, (R8)(DX*1); \
	ADDQ	$32, DX; \
	CMPQ	DX, R15; \
	JB	more; \
again: \
	/* The second look: nothing has changed, the gate was open throughout, and */ \
	/* nobody needs a lease. */ \
	TESTQ	$1, R12; \
	JNZ	no; \
	XORQ	(R13), BX; \
	SHLQ	$15, BX; \
	JNZ	no; \
	CMPQ	R12, (SI); \
	JNE	no; \
	MOVL	R10, DX; \
	ANDL	$3, DX; \
	CMPL	DX, $2; \
	JNE	no; \
	CMPQ	R10, (R9); \
	JNE	no; \
	MOVQ	probe_lease(DI), DX; \
	CMPQ	(DX), $-1; \
	JNE	no; \
	VZEROUPPER; \
	MOVQ	CX, ret; \
	RET; \
small: \
	CMPQ	CX, $16; \
	JB	tiny; \
	VMOVDQU	(R11), X4; \
	VMOVDQU	-16(R11)(CX*1), X5; \
	VMOVDQU	X4, (R8); \
	VMOVDQU	X5, -16(R8)(CX*1); \
	JMP	again; \
tiny: \
	CMPQ	CX, $8; \
	JB	no; \
	MOVQ	(R11), DX; \
	MOVQ	-8(R11)(CX*1), R15; \
	MOVQ	DX, (R8); \
	MOVQ	R15, -8(R8)(CX*1); \
	JMP	again; \
no: \
	VZEROUPPER; \
	MOVQ	$const_missed, ret; \
	RET

// func quickFetch(h *Handle, dst, key *[]byte) int
//
// The hash is hash9to16, line by line.
TEXT ·quickFetch(SB), NOSPLIT, $0-32
	MOVQ	h+0(FP), DX
	MOVQ	Handle_quick(DX), AX
	TESTQ	AX, AX
	JZ	refuse
	MOVQ	key+16(FP), R9
	MOVQ	8(R9), R14
	LEAQ	-9(R14), CX
	CMPQ	CX, $8
	JAE	refuse
	MOVQ	Handle_db(DX), DI
	MOVQ	DB_s(DI), CX
	CMPL	Store_closed(CX), $0
	JNE	refuse
	MOVQ	actor_h(AX), CX
	MOVQ	(handle_counters+8*const_countFetches)(CX), DX
	INCQ	DX
	TESTL	$(const_sampleEvery-1), DX
	JZ	refuse
	MOVQ	DX, (handle_counters+8*const_countFetches)(CX)
	MOVQ	0(R9), R15
	ADDQ	$DB_probe, DI
	MOVQ	probe_flip(DI), AX
	XORQ	(R15), AX
	MOVQ	probe_flip+8(DI), CX
	XORQ	-8(R15)(R14*1), CX
	MOVQ	AX, R8
	BSWAPQ	R8
	ADDQ	R14, R8
	ADDQ	CX, R8
	MULQ	CX
	XORQ	DX, AX
	ADDQ	AX, R8
	MOVQ	R8, AX
	SHRQ	$37, R8
	XORQ	AX, R8
	MOVQ	$0x165667919e3779f9, AX
	IMULQ	AX, R8
	MOVQ	R8, AX
	SHRQ	$32, R8
	XORQ	AX, R8
	READ(ret+24(FP))
refuse:
	MOVQ	$const_refused, ret+24(FP)
	RET

// func quickRead(p *probe, dst, key *[]byte, hash uint64) int
TEXT ·quickRead(SB), NOSPLIT, $0-40
	MOVQ	p+0(FP), DI
	MOVQ	key+16(FP), R9
	MOVQ	0(R9), R15
	MOVQ	8(R9), R14
	MOVQ	hash+24(FP), R8
	READ(ret+32(FP))

// func quickFind(p *probe, key unsafe.Pointer, klen, hash uint64) (entry *shm.Word64, e uint64, b *block, seq, meta uint64)
TEXT ·quickFind(SB), NOSPLIT, $0-72
	MOVQ	p+0(FP), DI
	MOVQ	hash+24(FP), R8
	FIND
	TESTQ	$1, R12
	JNZ	no
	MOVQ	klen+16(FP), R14
	SHLL	$16, CX
	ORL	R14, CX
	MOVQ	32(SI), R9
	MOVL	R9, R11
	ANDL	$0xffffff, R11
	CMPL	R11, CX
	JNE	no
	MOVQ	key+8(FP), R15
	SAMEKEY
	VZEROUPPER
	MOVQ	R13, entry+32(FP)
	MOVQ	BX, e+40(FP)
	MOVQ	SI, b+48(FP)
	MOVQ	R12, seq+56(FP)
	MOVQ	R9, meta+64(FP)
	RET
no:
	VZEROUPPER
	MOVQ	$0, entry+32(FP)
	RET
