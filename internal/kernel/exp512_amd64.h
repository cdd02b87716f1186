// Exp and sums over a vector on AVX-512, for the files that include this one.

#define CONST(name, value) \
	DATA name<>+0x00(SB)/4, $value \
	GLOBL name<>(SB), RODATA|NOPTR, $4

CONST(bottom, 0xc2aeac4f) // -87.33654
CONST(top, 0x42b17217)    // 88.72283
CONST(log2e, 0x3fb8aa3b)
CONST(ln2Hi, 0x3f318000)
CONST(ln2Lo, 0xb95e8083)
CONST(c7, 0x39500d01) // 1/5040
CONST(c6, 0x3ab60b61) // 1/720
CONST(c5, 0x3c088889) // 1/120
CONST(c4, 0x3d2aaaab) // 1/24
CONST(c3, 0x3e2aaaab) // 1/6
CONST(c2, 0x3f000000) // 1/2
CONST(one, 0x3f800000)
CONST(minusInf, 0xff800000)

// EXP512 makes x e^x, as Exp does. It uses Z20 to Z22 and K4. NaN stays NaN: where one operand is NaN, VMAXPS and VMINPS give the one
// written first here.
#define EXP512(x) \
	VCMPPS.BCST $5, bottom<>(SB), x, K4 \
	VBROADCASTSS bottom<>(SB), Z20 \
	VMAXPS x, Z20, x \
	VBROADCASTSS top<>(SB), Z20 \
	VMINPS x, Z20, x \
	VMULPS.BCST log2e<>(SB), x, Z20 \
	VRNDSCALEPS $0, Z20, Z20 \
	VFNMADD231PS.BCST ln2Hi<>(SB), Z20, x \
	VFNMADD231PS.BCST ln2Lo<>(SB), Z20, x \
	VBROADCASTSS c7<>(SB), Z21 \
	VFMADD213PS.BCST c6<>(SB), x, Z21 \
	VFMADD213PS.BCST c5<>(SB), x, Z21 \
	VFMADD213PS.BCST c4<>(SB), x, Z21 \
	VFMADD213PS.BCST c3<>(SB), x, Z21 \
	VFMADD213PS.BCST c2<>(SB), x, Z21 \
	VMULPS x, x, Z22 \
	VFMADD213PS x, Z22, Z21 \
	VADDPS.BCST one<>(SB), Z21, Z21 \
	VCVTPS2DQ Z20, Z20 \
	VPSLLD $23, Z20, Z20 \
	VPADDD.Z Z20, Z21, K4, x

// HORIZONTAL makes the lowest value of X1 what op makes of all of Z1. It uses X0.
#define HORIZONTAL(op) \
	VEXTRACTF64X4 $1, Z1, Y0 \
	op Y0, Y1, Y1 \
	VEXTRACTF128 $1, Y1, X0 \
	op X0, X1, X1 \
	VPERMILPS $0x4e, X1, X0 \
	op X0, X1, X1 \
	VPERMILPS $0xb1, X1, X0 \
	op X0, X1, X1
