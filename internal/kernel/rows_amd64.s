//go:build !purego

#include "textflag.h"

// Eight ones, then eight zeros: the mask of n values starts at the one numbered 8-n. exp_amd64.s uses it too.
DATA ·tailMask+0x00(SB)/8, $-1
DATA ·tailMask+0x08(SB)/8, $-1
DATA ·tailMask+0x10(SB)/8, $-1
DATA ·tailMask+0x18(SB)/8, $-1
DATA ·tailMask+0x20(SB)/8, $0
DATA ·tailMask+0x28(SB)/8, $0
DATA ·tailMask+0x30(SB)/8, $0
DATA ·tailMask+0x38(SB)/8, $0
GLOBL ·tailMask(SB), RODATA|NOPTR, $64

// REDUCE adds the eight lanes of each of a, b, c, d and leaves the four sums in the X register of a.
#define REDUCE(a, xa, b, xb, c, xc, d, xd) \
	VEXTRACTF128 $1, a, X12 \
	VEXTRACTF128 $1, b, X13 \
	VEXTRACTF128 $1, c, X14 \
	VEXTRACTF128 $1, d, X15 \
	VADDPS X12, xa, xa \
	VADDPS X13, xb, xb \
	VADDPS X14, xc, xc \
	VADDPS X15, xd, xd \
	VHADDPS xb, xa, xa \
	VHADDPS xd, xc, xc \
	VHADDPS xc, xa, xa

// func dot4x2AVX2(w0, w1, w2, w3, x0, x1 *float32, n int, out *[8]float32)
TEXT ·dot4x2AVX2(SB), NOSPLIT, $0-64
	MOVQ w0+0(FP), R8
	MOVQ w1+8(FP), R9
	MOVQ w2+16(FP), R10
	MOVQ w3+24(FP), R11
	MOVQ x0+32(FP), SI
	MOVQ x1+40(FP), DI
	MOVQ n+48(FP), CX
	MOVQ out+56(FP), DX
	VXORPS Y0, Y0, Y0
	VXORPS Y1, Y1, Y1
	VXORPS Y2, Y2, Y2
	VXORPS Y3, Y3, Y3
	VXORPS Y4, Y4, Y4
	VXORPS Y5, Y5, Y5
	VXORPS Y6, Y6, Y6
	VXORPS Y7, Y7, Y7
	XORQ AX, AX
	SUBQ $8, CX
	JLT  tail

loop:
	VMOVUPS (SI)(AX*4), Y8
	VMOVUPS (DI)(AX*4), Y9
	VMOVUPS (R8)(AX*4), Y10
	VMOVUPS (R9)(AX*4), Y11
	VFMADD231PS Y8, Y10, Y0
	VFMADD231PS Y9, Y10, Y4
	VFMADD231PS Y8, Y11, Y1
	VFMADD231PS Y9, Y11, Y5
	VMOVUPS (R10)(AX*4), Y12
	VMOVUPS (R11)(AX*4), Y13
	VFMADD231PS Y8, Y12, Y2
	VFMADD231PS Y9, Y12, Y6
	VFMADD231PS Y8, Y13, Y3
	VFMADD231PS Y9, Y13, Y7
	ADDQ $8, AX
	CMPQ AX, CX
	JLE  loop

tail:
	ADDQ $8, CX
	SUBQ AX, CX // values left, 0 to 7
	JZ   reduce
	LEAQ ·tailMask+32(SB), BX
	SHLQ $2, CX
	SUBQ CX, BX
	VMOVUPS (BX), Y14
	VMASKMOVPS (SI)(AX*4), Y14, Y8
	VMASKMOVPS (DI)(AX*4), Y14, Y9
	VMASKMOVPS (R8)(AX*4), Y14, Y10
	VMASKMOVPS (R9)(AX*4), Y14, Y11
	VFMADD231PS Y8, Y10, Y0
	VFMADD231PS Y9, Y10, Y4
	VFMADD231PS Y8, Y11, Y1
	VFMADD231PS Y9, Y11, Y5
	VMASKMOVPS (R10)(AX*4), Y14, Y12
	VMASKMOVPS (R11)(AX*4), Y14, Y13
	VFMADD231PS Y8, Y12, Y2
	VFMADD231PS Y9, Y12, Y6
	VFMADD231PS Y8, Y13, Y3
	VFMADD231PS Y9, Y13, Y7

reduce:
	REDUCE(Y0, X0, Y1, X1, Y2, X2, Y3, X3)
	REDUCE(Y4, X4, Y5, X5, Y6, X6, Y7, X7)
	VMOVUPS X0, (DX)
	VMOVUPS X4, 16(DX)
	VZEROUPPER
	RET

// func f16ToF32AVX2(dst *float32, src *uint16, n int)
TEXT ·f16ToF32AVX2(SB), NOSPLIT, $0-24
	MOVQ dst+0(FP), DI
	MOVQ src+8(FP), SI
	MOVQ n+16(FP), CX
	XORQ AX, AX

convert:
	VCVTPH2PS (SI)(AX*2), Y0
	VMOVUPS Y0, (DI)(AX*4)
	ADDQ $8, AX
	CMPQ AX, CX
	JLT  convert
	VZEROUPPER
	RET

// func sumSquaresAVX2(x *float32, n int) float64
TEXT ·sumSquaresAVX2(SB), NOSPLIT, $0-24
	MOVQ x+0(FP), SI
	MOVQ n+8(FP), CX
	VXORPD Y0, Y0, Y0
	VXORPD Y1, Y1, Y1
	VXORPD Y2, Y2, Y2
	VXORPD Y3, Y3, Y3
	XORQ AX, AX

squares:
	VCVTPS2PD (SI)(AX*4), Y4
	VCVTPS2PD 16(SI)(AX*4), Y5
	VCVTPS2PD 32(SI)(AX*4), Y6
	VCVTPS2PD 48(SI)(AX*4), Y7
	VFMADD231PD Y4, Y4, Y0
	VFMADD231PD Y5, Y5, Y1
	VFMADD231PD Y6, Y6, Y2
	VFMADD231PD Y7, Y7, Y3
	ADDQ $16, AX
	CMPQ AX, CX
	JLT  squares
	VADDPD Y1, Y0, Y0
	VADDPD Y3, Y2, Y2
	VADDPD Y2, Y0, Y0
	VEXTRACTF128 $1, Y0, X1
	VADDPD X1, X0, X0
	VHADDPD X0, X0, X0
	VMOVSD X0, ret+16(FP)
	VZEROUPPER
	RET

// func scaleRowAVX2(dst, x, gain *float32, n int, scale float32)
TEXT ·scaleRowAVX2(SB), NOSPLIT, $0-36
	MOVQ dst+0(FP), DI
	MOVQ x+8(FP), SI
	MOVQ gain+16(FP), DX
	MOVQ n+24(FP), CX
	VBROADCASTSS scale+32(FP), Y7
	XORQ AX, AX

scaled:
	VMULPS (SI)(AX*4), Y7, Y0
	VMULPS 32(SI)(AX*4), Y7, Y1
	VMULPS (DX)(AX*4), Y0, Y0
	VMULPS 32(DX)(AX*4), Y1, Y1
	VMOVUPS Y0, (DI)(AX*4)
	VMOVUPS Y1, 32(DI)(AX*4)
	ADDQ $16, AX
	CMPQ AX, CX
	JLT  scaled
	VZEROUPPER
	RET
