#include "textflag.h"

// func StoreBarrier()
TEXT ·StoreBarrier(SB), NOSPLIT, $0-0
	DMB	$0xA	// ISHST
	RET

// func LoadBarrier()
TEXT ·LoadBarrier(SB), NOSPLIT, $0-0
	DMB	$0x9	// ISHLD
	RET

// func pause(n uint32)
TEXT ·pause(SB), NOSPLIT, $0-4
	MOVWU	n+0(FP), R0
loop:
	CBZ	R0, done
	YIELD
	SUBW	$1, R0
	B	loop
done:
	RET

// func Ticks() uint64
TEXT ·Ticks(SB), NOSPLIT, $0-8
	MRS	CNTVCT_EL0, R0
	MOVD	R0, ret+0(FP)
	RET

// func Prefetch(p unsafe.Pointer)
TEXT ·Prefetch(SB), NOSPLIT, $0-8
	MOVD	p+0(FP), R0
	PRFM	(R0), PLDL1KEEP
	RET
