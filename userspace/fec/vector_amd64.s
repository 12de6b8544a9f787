#include "textflag.h"

// func mulAddGFNI(by *[8]uint64, in *[8]*byte, row *byte, n int)
// row ^= by[0] × in[0] ^ … ^ by[7] × in[7], 64 bytes at a time; n is a multiple of 64, and not 0.
TEXT ·mulAddGFNI(SB), NOSPLIT, $0-32
	MOVQ         by+0(FP), AX
	VPBROADCASTQ 0(AX), Z0
	VPBROADCASTQ 8(AX), Z1
	VPBROADCASTQ 16(AX), Z2
	VPBROADCASTQ 24(AX), Z3
	VPBROADCASTQ 32(AX), Z4
	VPBROADCASTQ 40(AX), Z5
	VPBROADCASTQ 48(AX), Z6
	VPBROADCASTQ 56(AX), Z7
	MOVQ         in+8(FP), AX
	MOVQ         0(AX), R8
	MOVQ         8(AX), R9
	MOVQ         16(AX), R10
	MOVQ         24(AX), R11
	MOVQ         32(AX), R12
	MOVQ         40(AX), R13
	MOVQ         48(AX), BX
	MOVQ         56(AX), DX
	MOVQ         row+16(FP), DI
	MOVQ         n+24(FP), CX
	XORQ         AX, AX

loop:
	VMOVDQU64      (R8)(AX*1), Z8
	VMOVDQU64      (R9)(AX*1), Z9
	VMOVDQU64      (R10)(AX*1), Z10
	VMOVDQU64      (R11)(AX*1), Z11
	VMOVDQU64      (R12)(AX*1), Z12
	VMOVDQU64      (R13)(AX*1), Z13
	VMOVDQU64      (BX)(AX*1), Z14
	VMOVDQU64      (DX)(AX*1), Z15
	VGF2P8AFFINEQB $0, Z0, Z8, Z8
	VGF2P8AFFINEQB $0, Z1, Z9, Z9
	VGF2P8AFFINEQB $0, Z2, Z10, Z10
	VGF2P8AFFINEQB $0, Z3, Z11, Z11
	VGF2P8AFFINEQB $0, Z4, Z12, Z12
	VGF2P8AFFINEQB $0, Z5, Z13, Z13
	VGF2P8AFFINEQB $0, Z6, Z14, Z14
	VGF2P8AFFINEQB $0, Z7, Z15, Z15
	VPXORQ         Z9, Z8, Z8
	VPXORQ         Z11, Z10, Z10
	VPXORQ         Z13, Z12, Z12
	VPXORQ         Z15, Z14, Z14
	VPXORQ         Z10, Z8, Z8
	VPXORQ         Z14, Z12, Z12
	VPXORQ         Z12, Z8, Z8
	VPXORQ         (DI)(AX*1), Z8, Z8
	VMOVDQU64      Z8, (DI)(AX*1)
	ADDQ           $64, AX
	CMPQ           AX, CX
	JLT            loop
	VZEROUPPER
	RET
