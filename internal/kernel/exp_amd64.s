//go:build !purego

#include "textflag.h"

// Constants of Exp, eight times each.
#define CONST8(name, value) \
	DATA name<>+0x00(SB)/4, $value \
	DATA name<>+0x04(SB)/4, $value \
	DATA name<>+0x08(SB)/4, $value \
	DATA name<>+0x0c(SB)/4, $value \
	DATA name<>+0x10(SB)/4, $value \
	DATA name<>+0x14(SB)/4, $value \
	DATA name<>+0x18(SB)/4, $value \
	DATA name<>+0x1c(SB)/4, $value \
	GLOBL name<>(SB), RODATA|NOPTR, $32

CONST8(bottom, 0xc2aeac4f) // -87.33654
CONST8(top, 0x42b17217)    // 88.72283
CONST8(log2e, 0x3fb8aa3b)
CONST8(ln2Hi, 0x3f318000)
CONST8(ln2Lo, 0xb95e8083)
CONST8(c7, 0x39500d01) // 1/5040
CONST8(c6, 0x3ab60b61) // 1/720
CONST8(c5, 0x3c088889) // 1/120
CONST8(c4, 0x3d2aaaab) // 1/24
CONST8(c3, 0x3e2aaaab) // 1/6
CONST8(c2, 0x3f000000) // 1/2
CONST8(one, 0x3f800000)


// EXP makes Y0 e^Y0, as Exp does. It uses Y1 to Y4. NaN stays NaN: where one operand is NaN, VMAXPS and VMINPS give the one written first here.
#define EXP \
	VCMPPS $1, bottom<>(SB), Y0, Y4 \
	VMOVUPS bottom<>(SB), Y1 \
	VMAXPS Y0, Y1, Y0 \
	VMOVUPS top<>(SB), Y1 \
	VMINPS Y0, Y1, Y0 \
	VMULPS log2e<>(SB), Y0, Y1 \
	VROUNDPS $0, Y1, Y1 \
	VFNMADD231PS ln2Hi<>(SB), Y1, Y0 \
	VFNMADD231PS ln2Lo<>(SB), Y1, Y0 \
	VMOVUPS c7<>(SB), Y2 \
	VFMADD213PS c6<>(SB), Y0, Y2 \
	VFMADD213PS c5<>(SB), Y0, Y2 \
	VFMADD213PS c4<>(SB), Y0, Y2 \
	VFMADD213PS c3<>(SB), Y0, Y2 \
	VFMADD213PS c2<>(SB), Y0, Y2 \
	VMULPS Y0, Y0, Y3 \
	VFMADD213PS Y0, Y3, Y2 \
	VADDPS one<>(SB), Y2, Y2 \
	VCVTPS2DQ Y1, Y1 \
	VPSLLD $23, Y1, Y1 \
	VPADDD Y1, Y2, Y0 \
	VANDNPS Y0, Y4, Y0

DATA minusInf<>+0x00(SB)/4, $0xff800000
GLOBL minusInf<>(SB), RODATA|NOPTR, $4

// WEIGH makes the weights of the scores at off(BX), and leaves them in Y0. Y5 is the maximum.
#define WEIGH(off) \
	VMOVUPS off(BX), Y0 \
	VSUBPS Y5, Y0, Y0 \
	EXP

// func softmaxAVX2(states, scores *float32, rows, n, stride, d int)
//
// A state is the maximum, the sum and d weighted values of a running softmax. The n scores of each row, KeyTile of them every stride
// bytes, become weights, and what the state holds shrinks where its maximum grows.
TEXT ·softmaxAVX2(SB), NOSPLIT, $0-48
	MOVQ states+0(FP), DI
	MOVQ scores+8(FP), SI
	MOVQ rows+16(FP), R10
	MOVQ n+24(FP), CX
	MOVQ stride+32(FP), R11
	MOVQ d+40(FP), R8

	// Y7: the mask of the last vector's values, n modulo 8 of them or all eight.
	DECQ CX
	MOVQ CX, AX
	ANDQ $7, AX
	LEAQ ·tailMask+28(SB), BX
	SHLQ $2, AX
	SUBQ AX, BX
	VMOVUPS (BX), Y7
	MOVQ CX, R9
	SHRQ $5, R9 // tiles before the last
	SHRQ $3, CX
	ANDQ $3, CX // of that one, vectors before the last

	// First the maxima of all rows: they wait for each other's results as little as possible.
row:
	VBROADCASTSS minusInf<>(SB), Y5
	VMOVAPS Y5, Y6
	VMOVAPS Y5, Y9
	MOVQ SI, BX
	MOVQ R9, AX

mostTile:
	TESTQ AX, AX
	JZ   mostLast
	VMAXPS (BX), Y5, Y5
	VMAXPS 32(BX), Y6, Y6
	VMAXPS 64(BX), Y5, Y5
	VMAXPS 96(BX), Y6, Y6
	ADDQ R11, BX
	DECQ AX
	JMP  mostTile

mostLast:
	MOVQ CX, AX

most:
	TESTQ AX, AX
	JZ   mostRest
	VMAXPS (BX), Y5, Y5
	ADDQ $32, BX
	DECQ AX
	JMP  most

mostRest:
	VMOVUPS (BX), Y0
	VBLENDVPS Y7, Y0, Y9, Y0
	VMAXPS Y6, Y5, Y5
	VMAXPS Y0, Y5, Y5
	VEXTRACTF128 $1, Y5, X0
	VMAXPS X0, X5, X5
	VPERMILPS $0x4e, X5, X0
	VMAXPS X0, X5, X5
	VPERMILPS $0xb1, X5, X0
	VMAXPS X0, X5, X5
	VMOVSS (DI), X8 // the old one
	VMAXSS X5, X8, X5
	VUCOMISS X8, X5
	JE   nextRow // or no number: then the sum is none either
	VMOVSS X5, (DI)
	VSUBSS X5, X8, X0
	VBROADCASTSS X0, Y0
	EXP
	VMULSS 4(DI), X0, X1
	VMOVSS X1, 4(DI)
	MOVQ R8, AX
	LEAQ 8(DI), BX

shrink:
	VMULPS (BX), Y0, Y1
	VMOVUPS Y1, (BX)
	ADDQ $32, BX
	SUBQ $8, AX
	JNZ  shrink

nextRow:
	LEAQ 8(DI)(R8*4), DI
	ADDQ $128, SI
	DECQ R10
	JNZ  row

	MOVQ states+0(FP), DI
	MOVQ scores+8(FP), SI
	MOVQ rows+16(FP), R10

weigh:
	VBROADCASTSS (DI), Y5
	VXORPS Y6, Y6, Y6 // sums of the weights
	MOVQ SI, BX
	MOVQ R9, AX

weighTile:
	TESTQ AX, AX
	JZ   weighLast
	WEIGH(0)
	VMOVUPS Y0, (BX)
	VADDPS Y0, Y6, Y6
	WEIGH(32)
	VMOVUPS Y0, 32(BX)
	VADDPS Y0, Y6, Y6
	WEIGH(64)
	VMOVUPS Y0, 64(BX)
	VADDPS Y0, Y6, Y6
	WEIGH(96)
	VMOVUPS Y0, 96(BX)
	VADDPS Y0, Y6, Y6
	ADDQ R11, BX
	DECQ AX
	JMP  weighTile

weighLast:
	MOVQ CX, AX

weight:
	TESTQ AX, AX
	JZ   weightRest
	WEIGH(0)
	VMOVUPS Y0, (BX)
	VADDPS Y0, Y6, Y6
	ADDQ $32, BX
	DECQ AX
	JMP  weight

weightRest:
	WEIGH(0)
	VANDPS Y7, Y0, Y0
	VMOVUPS Y0, (BX)
	VADDPS Y0, Y6, Y6
	VEXTRACTF128 $1, Y6, X0
	VADDPS X0, X6, X6
	VHADDPS X6, X6, X6
	VHADDPS X6, X6, X6
	VADDSS 4(DI), X6, X6
	VMOVSS X6, 4(DI)
	LEAQ 8(DI)(R8*4), DI
	ADDQ $128, SI
	DECQ R10
	JNZ  weigh
	VZEROUPPER
	RET

// func swiGLUAVX2(gate, up *float32, n int)
TEXT ·swiGLUAVX2(SB), NOSPLIT, $0-24
	MOVQ gate+0(FP), DI
	MOVQ up+8(FP), SI
	MOVQ n+16(FP), CX

glu:
	VMOVUPS (DI), Y5
	VXORPS Y0, Y0, Y0
	VSUBPS Y5, Y0, Y0
	EXP
	VADDPS one<>(SB), Y0, Y0
	VDIVPS Y0, Y5, Y0
	VMULPS (SI), Y0, Y0
	VMOVUPS Y0, (DI)
	ADDQ $32, DI
	ADDQ $32, SI
	SUBQ $8, CX
	JG   glu
	VZEROUPPER
	RET

// func exponentialsAVX2(x *float32, n int, scale, shift float32) float32
TEXT ·exponentialsAVX2(SB), NOSPLIT, $0-28
	MOVQ x+0(FP), DI
	MOVQ n+8(FP), CX
	VBROADCASTSS scale+16(FP), Y7
	VBROADCASTSS shift+20(FP), Y8
	VXORPS Y6, Y6, Y6

exponential:
	VMULPS (DI), Y7, Y0
	VSUBPS Y8, Y0, Y0
	EXP
	VMOVUPS Y0, (DI)
	VADDPS Y0, Y6, Y6
	ADDQ $32, DI
	SUBQ $8, CX
	JG   exponential
	VEXTRACTF128 $1, Y6, X0
	VADDPS X0, X6, X6
	VHADDPS X6, X6, X6
	VHADDPS X6, X6, X6
	VMOVSS X6, ret+24(FP)
	VZEROUPPER
	RET

// func swiGLUGradientAVX2(gate, up, dh *float32, n int)
TEXT ·swiGLUGradientAVX2(SB), NOSPLIT, $0-32
	MOVQ gate+0(FP), DI
	MOVQ up+8(FP), SI
	MOVQ dh+16(FP), DX
	MOVQ n+24(FP), CX

gradient:
	VMOVUPS (DI), Y5
	VXORPS Y0, Y0, Y0
	VSUBPS Y5, Y0, Y0
	EXP
	VMOVUPS one<>(SB), Y1
	VADDPS Y1, Y0, Y0
	VDIVPS Y0, Y1, Y6 // sigmoid
	VMULPS Y6, Y5, Y7 // silu
	VMOVUPS (SI), Y8
	VMOVUPS (DX), Y9
	VMULPS Y8, Y7, Y2
	VMOVUPS Y2, (DX)
	VMULPS Y7, Y9, Y2
	VMOVUPS Y2, (SI)
	VSUBPS Y6, Y1, Y1
	VFMADD231PS Y1, Y7, Y6
	VMULPS Y8, Y9, Y9
	VMULPS Y6, Y9, Y9
	VMOVUPS Y9, (DI)
	ADDQ $32, DI
	ADDQ $32, SI
	ADDQ $32, DX
	SUBQ $8, CX
	JG   gradient
	VZEROUPPER
	RET
