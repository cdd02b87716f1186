//go:build !purego

#include "textflag.h"

// Constants of Exp, eight times each, and the mask of n values at tail+32-4n.
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

DATA expTail<>+0x00(SB)/8, $-1
DATA expTail<>+0x08(SB)/8, $-1
DATA expTail<>+0x10(SB)/8, $-1
DATA expTail<>+0x18(SB)/8, $-1
DATA expTail<>+0x20(SB)/8, $0
DATA expTail<>+0x28(SB)/8, $0
DATA expTail<>+0x30(SB)/8, $0
DATA expTail<>+0x38(SB)/8, $0
GLOBL expTail<>(SB), RODATA|NOPTR, $64

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

// func expSumAVX2(x *float32, n int, m float32) float32
TEXT ·expSumAVX2(SB), NOSPLIT, $0-28
	MOVQ x+0(FP), DI
	MOVQ n+8(FP), CX
	VBROADCASTSS m+16(FP), Y5
	VXORPS Y6, Y6, Y6
	SUBQ $8, CX
	JLT  tail

loop:
	VMOVUPS (DI), Y0
	VSUBPS Y5, Y0, Y0
	EXP
	VMOVUPS Y0, (DI)
	VADDPS Y0, Y6, Y6
	ADDQ $32, DI
	SUBQ $8, CX
	JGE  loop

tail:
	ADDQ $8, CX
	JZ   sum
	LEAQ expTail<>+32(SB), BX
	SHLQ $2, CX
	SUBQ CX, BX
	VMOVUPS (BX), Y7
	VMASKMOVPS (DI), Y7, Y0
	VSUBPS Y5, Y0, Y0
	EXP
	VANDPS Y7, Y0, Y0
	VMASKMOVPS Y0, Y7, (DI)
	VADDPS Y0, Y6, Y6

sum:
	VEXTRACTF128 $1, Y6, X0
	VADDPS X0, X6, X6
	VHADDPS X6, X6, X6
	VHADDPS X6, X6, X6
	VMOVSS X6, ret+24(FP)
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
