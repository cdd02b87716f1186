//go:build !purego

#include "go_asm.h"
#include "textflag.h"
#include "exp512_amd64.h"

// Attention on AMX's tiles, see attendamx.go. Numbers are split: bf16 high + bf16 low, 16 bits of mantissa in all.
//
// The assembler does not know these instructions. Intel's encodings, as GNU as writes them; the names say tile, displacement, base
// and stride, or sum and factors:
#define LDTILECFG_AX BYTE $0xc4; BYTE $0xe2; BYTE $0x78; BYTE $0x49; BYTE $0x00
#define TILERELEASE BYTE $0xc4; BYTE $0xe2; BYTE $0x78; BYTE $0x49; BYTE $0xc0
#define TILEZERO_0 BYTE $0xc4; BYTE $0xe2; BYTE $0x7b; BYTE $0x49; BYTE $0xc0
#define TILEZERO_1 BYTE $0xc4; BYTE $0xe2; BYTE $0x7b; BYTE $0x49; BYTE $0xc8
#define TILEZERO_2 BYTE $0xc4; BYTE $0xe2; BYTE $0x7b; BYTE $0x49; BYTE $0xd0
#define TILEZERO_3 BYTE $0xc4; BYTE $0xe2; BYTE $0x7b; BYTE $0x49; BYTE $0xd8
#define LOAD_4_SI_DX BYTE $0xc4; BYTE $0xe2; BYTE $0x7b; BYTE $0x4b; BYTE $0x24; BYTE $0x16
#define LOAD_5_DI_DX BYTE $0xc4; BYTE $0xe2; BYTE $0x7b; BYTE $0x4b; BYTE $0x2c; BYTE $0x17
#define LOAD_6_BX_AX BYTE $0xc4; BYTE $0xe2; BYTE $0x7b; BYTE $0x4b; BYTE $0x34; BYTE $0x03
#define LOAD_7_64_BX_AX BYTE $0xc4; BYTE $0xe2; BYTE $0x7b; BYTE $0x4b; BYTE $0x7c; BYTE $0x03; BYTE $0x40
#define LOAD_4_SI_AX BYTE $0xc4; BYTE $0xe2; BYTE $0x7b; BYTE $0x4b; BYTE $0x24; BYTE $0x06
#define LOAD_5_DI_AX BYTE $0xc4; BYTE $0xe2; BYTE $0x7b; BYTE $0x4b; BYTE $0x2c; BYTE $0x07
#define LOAD_6_BX_DX BYTE $0xc4; BYTE $0xe2; BYTE $0x7b; BYTE $0x4b; BYTE $0x34; BYTE $0x13
#define LOAD_7_64_BX_DX BYTE $0xc4; BYTE $0xe2; BYTE $0x7b; BYTE $0x4b; BYTE $0x7c; BYTE $0x13; BYTE $0x40
#define LOAD_6_128_BX_DX BYTE $0xc4; BYTE $0xe2; BYTE $0x7b; BYTE $0x4b; BYTE $0xb4; BYTE $0x13; BYTE $0x80; BYTE $0x00; BYTE $0x00; BYTE $0x00
#define LOAD_7_192_BX_DX BYTE $0xc4; BYTE $0xe2; BYTE $0x7b; BYTE $0x4b; BYTE $0xbc; BYTE $0x13; BYTE $0xc0; BYTE $0x00; BYTE $0x00; BYTE $0x00
#define TDPBF16_0_4_6 BYTE $0xc4; BYTE $0xe2; BYTE $0x4a; BYTE $0x5c; BYTE $0xc4
#define TDPBF16_1_4_7 BYTE $0xc4; BYTE $0xe2; BYTE $0x42; BYTE $0x5c; BYTE $0xcc
#define TDPBF16_2_4_6 BYTE $0xc4; BYTE $0xe2; BYTE $0x4a; BYTE $0x5c; BYTE $0xd4
#define TDPBF16_3_4_7 BYTE $0xc4; BYTE $0xe2; BYTE $0x42; BYTE $0x5c; BYTE $0xdc
#define TDPBF16_2_5_6 BYTE $0xc4; BYTE $0xe2; BYTE $0x4a; BYTE $0x5c; BYTE $0xd5
#define TDPBF16_3_5_7 BYTE $0xc4; BYTE $0xe2; BYTE $0x42; BYTE $0x5c; BYTE $0xdd
#define TDPBF16_0_5_6 BYTE $0xc4; BYTE $0xe2; BYTE $0x4a; BYTE $0x5c; BYTE $0xc5
#define TDPBF16_1_5_7 BYTE $0xc4; BYTE $0xe2; BYTE $0x42; BYTE $0x5c; BYTE $0xcd
#define STORE_0_0_CX_AX BYTE $0xc4; BYTE $0xe2; BYTE $0x7a; BYTE $0x4b; BYTE $0x04; BYTE $0x01
#define STORE_1_64_CX_AX BYTE $0xc4; BYTE $0xe2; BYTE $0x7a; BYTE $0x4b; BYTE $0x4c; BYTE $0x01; BYTE $0x40
#define STORE_2_2048_CX_AX BYTE $0xc4; BYTE $0xe2; BYTE $0x7a; BYTE $0x4b; BYTE $0x94; BYTE $0x01; BYTE $0x00; BYTE $0x08; BYTE $0x00; BYTE $0x00
#define STORE_3_2112_CX_AX BYTE $0xc4; BYTE $0xe2; BYTE $0x7a; BYTE $0x4b; BYTE $0x9c; BYTE $0x01; BYTE $0x40; BYTE $0x08; BYTE $0x00; BYTE $0x00
#define STORE_0_0_CX_R8 BYTE $0xc4; BYTE $0xa2; BYTE $0x7a; BYTE $0x4b; BYTE $0x04; BYTE $0x01
#define STORE_1_64_CX_R8 BYTE $0xc4; BYTE $0xa2; BYTE $0x7a; BYTE $0x4b; BYTE $0x4c; BYTE $0x01; BYTE $0x40
#define STORE_2_128_CX_R8 BYTE $0xc4; BYTE $0xa2; BYTE $0x7a; BYTE $0x4b; BYTE $0x94; BYTE $0x01; BYTE $0x80; BYTE $0x00; BYTE $0x00; BYTE $0x00
#define STORE_3_192_CX_R8 BYTE $0xc4; BYTE $0xa2; BYTE $0x7a; BYTE $0x4b; BYTE $0x9c; BYTE $0x01; BYTE $0xc0; BYTE $0x00; BYTE $0x00; BYTE $0x00

DATA upperHalf<>+0x00(SB)/4, $0xffff0000
GLOBL upperHalf<>(SB), RODATA|NOPTR, $4
DATA roundHalf<>+0x00(SB)/4, $0x00008000
GLOBL roundHalf<>(SB), RODATA|NOPTR, $4

// func splitBF16(high, low *uint16, src *float32, n int)
TEXT ·splitBF16(SB), NOSPLIT, $0-32
	MOVQ high+0(FP), DI
	MOVQ low+8(FP), R8
	MOVQ src+16(FP), SI
	MOVQ n+24(FP), CX
	VPBROADCASTD roundHalf<>(SB), Z7
	XORQ AX, AX

split:
	VMOVUPS (SI)(AX*4), Z0
	VPADDD Z7, Z0, Z1
	VPSRLD $16, Z1, Z1
	VPMOVDW Z1, (DI)(AX*2)
	VPSLLD $16, Z1, Z1
	VSUBPS Z1, Z0, Z0 // exact
	VPADDD Z7, Z0, Z0
	VPSRLD $16, Z0, Z0
	VPMOVDW Z0, (R8)(AX*2)
	ADDQ $16, AX
	CMPQ AX, CX
	JLT  split
	VZEROUPPER
	RET

// func splitPairs(high, low *uint16, src *float32, pairs, d int)
//
// Two rows of src, value by value, become one row of pairs.
TEXT ·splitPairs(SB), NOSPLIT, $0-40
	MOVQ high+0(FP), DI
	MOVQ low+8(FP), R9
	MOVQ src+16(FP), SI
	MOVQ pairs+24(FP), CX
	MOVQ d+32(FP), R8
	SHLQ $2, R8 // bytes a row
	VPBROADCASTD roundHalf<>(SB), Z7
	VPBROADCASTD upperHalf<>(SB), Z6
	LEAQ (SI)(R8*1), R10

pair:
	XORQ AX, AX

values:
	VMOVUPS (SI)(AX*1), Z0
	VMOVUPS (R10)(AX*1), Z1
	VPADDD Z7, Z0, Z2
	VPADDD Z7, Z1, Z3
	VPANDD Z6, Z2, Z2
	VPANDD Z6, Z3, Z3
	VSUBPS Z2, Z0, Z0 // exact
	VSUBPS Z3, Z1, Z1
	VPSRLD $16, Z2, Z2
	VPORD Z3, Z2, Z2
	VMOVDQU32 Z2, (DI)(AX*1)
	VPADDD Z7, Z0, Z0
	VPADDD Z7, Z1, Z1
	VPSRLD $16, Z0, Z0
	VPANDD Z6, Z1, Z1
	VPORD Z1, Z0, Z0
	VMOVDQU32 Z0, (R9)(AX*1)
	ADDQ $64, AX
	CMPQ AX, R8
	JLT  values
	ADDQ R8, DI
	ADDQ R8, R9
	LEAQ (SI)(R8*2), SI
	LEAQ (R10)(R8*2), R10
	DECQ CX
	JNZ  pair
	VZEROUPPER
	RET

// func tileScores(a *tileScoresArgs)
//
// 32 queries by 32 keys at a time, 32 values a step: high·high, high·low and low·high.
TEXT ·tileScores(SB), NOSPLIT, $0-8
	MOVQ a+0(FP), BX
	MOVQ tileScoresArgs_config(BX), AX
	LDTILECFG_AX
	MOVQ tileScoresArgs_high(BX), R8
	MOVQ tileScoresArgs_low(BX), R9
	MOVQ tileScoresArgs_stride(BX), DX
	MOVQ tileScoresArgs_scores(BX), CX
	MOVQ tileScoresArgs_blocks(BX), R15
	MOVQ $128, AX

block:
	MOVQ a+0(FP), BX
	MOVQ tileScoresArgs_keysHigh(BX), R10
	MOVQ tileScoresArgs_keysLow(BX), R11
	MOVQ tileScoresArgs_steps(BX), R12
	MOVQ DX, R14
	SHLQ $4, R14 // sixteen queries
	XORQ R13, R13
	TILEZERO_0
	TILEZERO_1
	TILEZERO_2
	TILEZERO_3

step:
	LEAQ (R8)(R13*1), SI
	LEAQ (SI)(R14*1), DI
	MOVQ R10, BX
	LOAD_4_SI_DX
	LOAD_5_DI_DX
	LOAD_6_BX_AX
	LOAD_7_64_BX_AX
	TDPBF16_0_4_6
	TDPBF16_1_4_7
	TDPBF16_2_5_6
	TDPBF16_3_5_7
	MOVQ R11, BX
	LOAD_6_BX_AX
	LOAD_7_64_BX_AX
	TDPBF16_0_4_6
	TDPBF16_1_4_7
	TDPBF16_2_5_6
	TDPBF16_3_5_7
	LEAQ (R9)(R13*1), SI
	LEAQ (SI)(R14*1), DI
	MOVQ R10, BX
	LOAD_4_SI_DX
	LOAD_5_DI_DX
	LOAD_6_BX_AX
	LOAD_7_64_BX_AX
	TDPBF16_0_4_6
	TDPBF16_1_4_7
	TDPBF16_2_5_6
	TDPBF16_3_5_7
	ADDQ $64, R13
	ADDQ $2048, R10
	ADDQ $2048, R11
	DECQ R12
	JNZ  step
	STORE_0_0_CX_AX
	STORE_1_64_CX_AX
	STORE_2_2048_CX_AX
	STORE_3_2112_CX_AX
	ADDQ $4096, CX
	LEAQ (R8)(R14*2), R8
	LEAQ (R9)(R14*2), R9
	DECQ R15
	JNZ  block
	TILERELEASE
	VZEROUPPER
	RET

// func tileValues(a *tileValuesArgs)
//
// Sixteen queries by 64 values at a time.
TEXT ·tileValues(SB), NOSPLIT, $0-8
	MOVQ a+0(FP), BX
	MOVQ tileValuesArgs_config(BX), AX
	LDTILECFG_AX
	MOVQ tileValuesArgs_high(BX), SI
	MOVQ tileValuesArgs_low(BX), DI
	MOVQ tileValuesArgs_stride(BX), DX
	MOVQ tileValuesArgs_buffer(BX), CX
	MOVQ tileValuesArgs_state(BX), R9
	MOVQ tileValuesArgs_stateStride(BX), R10
	MOVQ tileValuesArgs_shrink(BX), R11
	MOVQ tileValuesArgs_rows(BX), R12
	MOVQ $64, AX
	MOVQ $256, R8

rows:
	MOVQ a+0(FP), BX
	MOVQ tileValuesArgs_quads(BX), R13
	XORQ R14, R14 // bytes into a row

quad:
	MOVQ a+0(FP), BX
	MOVQ tileValuesArgs_valuesHigh(BX), BX
	ADDQ R14, BX
	TILEZERO_0
	TILEZERO_1
	TILEZERO_2
	TILEZERO_3
	LOAD_4_SI_AX
	LOAD_5_DI_AX
	LOAD_6_BX_DX
	LOAD_7_64_BX_DX
	TDPBF16_0_4_6
	TDPBF16_1_4_7
	LOAD_6_128_BX_DX
	LOAD_7_192_BX_DX
	TDPBF16_2_4_6
	TDPBF16_3_4_7
	TDPBF16_2_5_6
	TDPBF16_3_5_7
	LOAD_6_BX_DX
	LOAD_7_64_BX_DX
	TDPBF16_0_5_6
	TDPBF16_1_5_7
	MOVQ a+0(FP), BX
	MOVQ tileValuesArgs_valuesLow(BX), BX
	ADDQ R14, BX
	LOAD_6_BX_DX
	LOAD_7_64_BX_DX
	TDPBF16_0_4_6
	TDPBF16_1_4_7
	LOAD_6_128_BX_DX
	LOAD_7_192_BX_DX
	TDPBF16_2_4_6
	TDPBF16_3_4_7
	STORE_0_0_CX_R8
	STORE_1_64_CX_R8
	STORE_2_128_CX_R8
	STORE_3_192_CX_R8

	// To the states of the queries there are, which shrink first.
	XORQ R15, R15
	LEAQ (R9)(R14*1), BX

add:
	VBROADCASTSS (R11)(R15*4), Z0
	VMOVUPS (BX), Z1
	VMOVUPS 64(BX), Z2
	VMOVUPS 128(BX), Z3
	VMOVUPS 192(BX), Z4
	VFMADD213PS (CX), Z0, Z1
	VFMADD213PS 64(CX), Z0, Z2
	VFMADD213PS 128(CX), Z0, Z3
	VFMADD213PS 192(CX), Z0, Z4
	VMOVUPS Z1, (BX)
	VMOVUPS Z2, 64(BX)
	VMOVUPS Z3, 128(BX)
	VMOVUPS Z4, 192(BX)
	ADDQ R10, BX
	ADDQ R8, CX
	INCQ R15
	CMPQ R15, R12
	JGE  added
	CMPQ R15, $16
	JLT  add

added:
	MOVQ a+0(FP), BX
	MOVQ tileValuesArgs_buffer(BX), CX
	ADDQ $256, R14
	DECQ R13
	JNZ  quad
	ADDQ $1024, SI
	ADDQ $1024, DI
	MOVQ R10, AX
	SHLQ $4, AX
	ADDQ AX, R9
	MOVQ $64, AX
	ADDQ $64, R11
	SUBQ $16, R12
	JG   rows
	TILERELEASE
	VZEROUPPER
	RET

// func tileSoftmax(a *tileSoftmaxArgs)
//
// As softmaxAVX512, for one tile of keys: scores become weights, split, and what their states shrink by.
TEXT ·tileSoftmax(SB), NOSPLIT, $0-8
	MOVQ a+0(FP), BX
	MOVQ tileSoftmaxArgs_scores(BX), SI
	MOVQ tileSoftmaxArgs_state(BX), DI
	MOVQ tileSoftmaxArgs_stateStride(BX), R8
	MOVQ tileSoftmaxArgs_high(BX), R9
	MOVQ tileSoftmaxArgs_low(BX), R10
	MOVQ tileSoftmaxArgs_shrink(BX), R11
	MOVQ tileSoftmaxArgs_visible(BX), R12
	MOVQ tileSoftmaxArgs_rows(BX), R13
	VPBROADCASTD roundHalf<>(SB), Z7

row:
	MOVL (R12), CX
	MOVQ $1, AX
	SHLQ CX, AX
	DECQ AX
	KMOVW AX, K1
	SHRQ $16, AX
	KMOVW AX, K2
	VBROADCASTSS minusInf<>(SB), Z2
	VMOVAPS Z2, Z3
	VMOVUPS (SI), K1, Z2
	VMOVUPS 64(SI), K2, Z3
	VMAXPS Z3, Z2, Z1
	HORIZONTAL(VMAXPS)
	VMOVSS (DI), X4 // the old maximum
	VMAXSS X1, X4, X5
	VMOVSS X5, (DI)
	VBROADCASTSS X5, Z5
	VBROADCASTSS one<>(SB), Z9
	VUCOMISS X4, X5
	JE   weigh // or no number: then the sum is none either
	VBROADCASTSS X4, Z0
	VSUBPS Z5, Z0, Z9
	EXP512(Z9)

weigh:
	VMOVSS X9, (R11)
	VSUBPS Z5, Z2, Z2
	VSUBPS Z5, Z3, Z3
	EXP512(Z2)
	EXP512(Z3)
	VMOVAPS.Z Z2, K1, Z2 // none is seen: the difference was no number
	VMOVAPS.Z Z3, K2, Z3
	VADDPS Z3, Z2, Z1
	HORIZONTAL(VADDPS)
	VMULSS 4(DI), X9, X0
	VADDSS X1, X0, X0
	VMOVSS X0, 4(DI)
	VPADDD Z7, Z2, Z0
	VPADDD Z7, Z3, Z1
	VPSRLD $16, Z0, Z0
	VPSRLD $16, Z1, Z1
	VPMOVDW Z0, (R9)
	VPMOVDW Z1, 32(R9)
	VPSLLD $16, Z0, Z0
	VPSLLD $16, Z1, Z1
	VSUBPS Z0, Z2, Z2
	VSUBPS Z1, Z3, Z3
	VPADDD Z7, Z2, Z2
	VPADDD Z7, Z3, Z3
	VPSRLD $16, Z2, Z2
	VPSRLD $16, Z3, Z3
	VPMOVDW Z2, (R10)
	VPMOVDW Z3, 32(R10)
	ADDQ $128, SI
	ADDQ R8, DI
	ADDQ $64, R9
	ADDQ $64, R10
	ADDQ $4, R11
	ADDQ $4, R12
	DECQ R13
	JNZ  row
	VZEROUPPER
	RET
