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

// func foldAVX2(state, scores, v *float32, n, d int)
//
// state is the maximum, the sum and d weighted values of a running softmax; n scores, 1 to KeyTile, become its weights.
TEXT ·foldAVX2(SB), NOSPLIT, $0-40
	MOVQ state+0(FP), DI
	MOVQ scores+8(FP), SI
	MOVQ v+16(FP), DX
	MOVQ n+24(FP), CX
	MOVQ d+32(FP), R8

	// Y7: the mask of the last vector's values, n modulo 8 of them or all eight.
	LEAQ -1(CX), AX
	ANDQ $7, AX
	LEAQ ·tailMask+28(SB), BX
	SHLQ $2, AX
	SUBQ AX, BX
	VMOVUPS (BX), Y7
	LEAQ -1(CX), R9
	SHRQ $3, R9 // vectors before the last

	// X5: the new maximum.
	VBROADCASTSS minusInf<>(SB), Y5
	VMOVAPS Y5, Y6
	MOVQ SI, BX
	MOVQ R9, AX

most:
	TESTQ AX, AX
	JZ   mostLast
	VMAXPS (BX), Y5, Y5
	ADDQ $32, BX
	DECQ AX
	JMP  most

mostLast:
	VMOVUPS (BX), Y0
	VBLENDVPS Y7, Y0, Y6, Y0
	VMAXPS Y0, Y5, Y5
	VEXTRACTF128 $1, Y5, X0
	VMAXPS X0, X5, X5
	VPERMILPS $0x4e, X5, X0
	VMAXPS X0, X5, X5
	VPERMILPS $0xb1, X5, X0
	VMAXPS X0, X5, X5
	VMOVSS (DI), X8 // the old one
	VMAXSS X5, X8, X5
	VMOVSS X5, (DI)
	VBROADCASTSS X5, Y5

	// Y9: by how much all so far shrinks; 1 where the maximum stays.
	VMOVUPS one<>(SB), Y9
	VUCOMISS X8, X5
	JE   weigh // or no number: then the sum is none either
	VBROADCASTSS X8, Y0
	VSUBPS Y5, Y0, Y0
	EXP
	VMOVAPS Y0, Y9

weigh:
	VXORPS Y6, Y6, Y6
	MOVQ SI, BX
	MOVQ R9, AX

weight:
	TESTQ AX, AX
	JZ   weightLast
	VMOVUPS (BX), Y0
	VSUBPS Y5, Y0, Y0
	EXP
	VMOVUPS Y0, (BX)
	VADDPS Y0, Y6, Y6
	ADDQ $32, BX
	DECQ AX
	JMP  weight

weightLast:
	VMOVUPS (BX), Y0
	VSUBPS Y5, Y0, Y0
	EXP
	VANDPS Y7, Y0, Y0
	VMOVUPS Y0, (BX)
	VADDPS Y0, Y6, Y6
	VEXTRACTF128 $1, Y6, X0
	VADDPS X0, X6, X6
	VHADDPS X6, X6, X6
	VHADDPS X6, X6, X6
	VMULSS 4(DI), X9, X0
	VADDSS X6, X0, X0
	VMOVSS X0, 4(DI)

	ADDQ $8, DI
	MOVQ R8, R9
	SHLQ $2, R9 // bytes a row of values

fold64: // 64 values a round
	CMPQ R8, $64
	JLT  fold8
	VMULPS (DI), Y9, Y0
	VMULPS 32(DI), Y9, Y1
	VMULPS 64(DI), Y9, Y2
	VMULPS 96(DI), Y9, Y3
	VMULPS 128(DI), Y9, Y4
	VMULPS 160(DI), Y9, Y5
	VMULPS 192(DI), Y9, Y6
	VMULPS 224(DI), Y9, Y7
	MOVQ DX, BX
	XORQ AX, AX

row64:
	VBROADCASTSS (SI)(AX*4), Y8
	VFMADD231PS (BX), Y8, Y0
	VFMADD231PS 32(BX), Y8, Y1
	VFMADD231PS 64(BX), Y8, Y2
	VFMADD231PS 96(BX), Y8, Y3
	VFMADD231PS 128(BX), Y8, Y4
	VFMADD231PS 160(BX), Y8, Y5
	VFMADD231PS 192(BX), Y8, Y6
	VFMADD231PS 224(BX), Y8, Y7
	ADDQ R9, BX
	INCQ AX
	CMPQ AX, CX
	JLT  row64
	VMOVUPS Y0, (DI)
	VMOVUPS Y1, 32(DI)
	VMOVUPS Y2, 64(DI)
	VMOVUPS Y3, 96(DI)
	VMOVUPS Y4, 128(DI)
	VMOVUPS Y5, 160(DI)
	VMOVUPS Y6, 192(DI)
	VMOVUPS Y7, 224(DI)
	ADDQ $256, DI
	ADDQ $256, DX
	SUBQ $64, R8
	JMP  fold64

fold8:
	TESTQ R8, R8
	JZ   folded
	VMULPS (DI), Y9, Y0
	MOVQ DX, BX
	XORQ AX, AX

row8:
	VBROADCASTSS (SI)(AX*4), Y8
	VFMADD231PS (BX), Y8, Y0
	ADDQ R9, BX
	INCQ AX
	CMPQ AX, CX
	JLT  row8
	VMOVUPS Y0, (DI)
	ADDQ $32, DI
	ADDQ $32, DX
	SUBQ $8, R8
	JMP  fold8

folded:
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
