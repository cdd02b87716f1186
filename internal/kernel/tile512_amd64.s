//go:build !purego

#include "go_asm.h"
#include "textflag.h"

// The twins of tile_amd64.s for AVX-512 with VNNI: one vector holds a value of all sixteen rows of a tile, and VPDPWSSD multiplies a
// pair of columns and adds. The sums are the same integers and the floats are added in the same order: the same bits.

// How far ahead packed weights are fetched, in bytes, as in tile_amd64.s.
#define AHEAD 2560

// PAIR512 takes one pair of columns, at byte off of the eight tokens' codes and 16·off of the weights'.
#define PAIR512(off) \
	VMOVDQU32 (16*off)(DI), Z16 \
	VPDPWSSD.BCST off(SI), Z16, Z0 \
	VPDPWSSD.BCST off(SI)(R8*1), Z16, Z1 \
	VPDPWSSD.BCST off(SI)(R8*2), Z16, Z2 \
	VPDPWSSD.BCST off(SI)(R9*1), Z16, Z3 \
	VPDPWSSD.BCST off(R14), Z16, Z4 \
	VPDPWSSD.BCST off(R14)(R8*1), Z16, Z5 \
	VPDPWSSD.BCST off(R14)(R8*2), Z16, Z6 \
	VPDPWSSD.BCST off(R14)(R9*1), Z16, Z7

// FOLD512 adds a token's sums, scaled, to its outputs. Z17 is the weights' scales.
#define FOLD512(xscale, sum, out) \
	VMULPS.BCST xscale, Z17, Z19 \
	VCVTDQ2PS sum, sum \
	VFMADD231PS sum, Z19, out

// func tile8AVX512(a *tileArgs)
TEXT ·tile8AVX512(SB), NOSPLIT, $0-8
	MOVQ a+0(FP), BX
	MOVQ tileArgs_codes(BX), DI
	MOVQ tileArgs_x(BX), SI
	MOVQ tileArgs_xStride(BX), R8
	LEAQ (R8)(R8*2), R9
	MOVQ tileArgs_xScales(BX), R10
	MOVQ tileArgs_groupStride(BX), R11
	LEAQ (R11)(R11*2), R15
	MOVQ tileArgs_scales(BX), R12
	MOVQ tileArgs_mins(BX), R13
	MOVQ tileArgs_xSums(BX), DX
	MOVQ tileArgs_groups(BX), CX
	VPXORD Z8, Z8, Z8
	VPXORD Z9, Z9, Z9
	VPXORD Z10, Z10, Z10
	VPXORD Z11, Z11, Z11
	VPXORD Z12, Z12, Z12
	VPXORD Z13, Z13, Z13
	VPXORD Z14, Z14, Z14
	VPXORD Z15, Z15, Z15
	CMPQ tileArgs_add(BX), $0
	JEQ  groups
	MOVQ tileArgs_dst(BX), AX
	VMOVUPS (AX), Z8
	ADDQ tileArgs_dstStride(BX), AX
	VMOVUPS (AX), Z9
	ADDQ tileArgs_dstStride(BX), AX
	VMOVUPS (AX), Z10
	ADDQ tileArgs_dstStride(BX), AX
	VMOVUPS (AX), Z11
	ADDQ tileArgs_dstStride(BX), AX
	VMOVUPS (AX), Z12
	ADDQ tileArgs_dstStride(BX), AX
	VMOVUPS (AX), Z13
	ADDQ tileArgs_dstStride(BX), AX
	VMOVUPS (AX), Z14
	ADDQ tileArgs_dstStride(BX), AX
	VMOVUPS (AX), Z15

groups:
	MOVQ tileArgs_parts(BX), AX

part:
	LEAQ (SI)(R8*4), R14
	VPXORD Z0, Z0, Z0
	VPXORD Z1, Z1, Z1
	VPXORD Z2, Z2, Z2
	VPXORD Z3, Z3, Z3
	VPXORD Z4, Z4, Z4
	VPXORD Z5, Z5, Z5
	VPXORD Z6, Z6, Z6
	VPXORD Z7, Z7, Z7
	PAIR512(0)
	PAIR512(4)
	PAIR512(8)
	PAIR512(12)
	PAIR512(16)
	PAIR512(20)
	PAIR512(24)
	PAIR512(28)
	ADDQ $32, SI
	ADDQ $512, DI
	CMPQ tileArgs_parts(BX), $1
	JNE  fold
	LEAQ (SI)(R8*4), R14
	PAIR512(0)
	PAIR512(4)
	PAIR512(8)
	PAIR512(12)
	PAIR512(16)
	PAIR512(20)
	PAIR512(24)
	PAIR512(28)
	ADDQ $32, SI
	ADDQ $512, DI

fold:
	VMOVUPS (R12), Z17
	ADDQ $64, R12
	LEAQ (R10)(R11*4), R14
	FOLD512((R10), Z0, Z8)
	FOLD512((R10)(R11*1), Z1, Z9)
	FOLD512((R10)(R11*2), Z2, Z10)
	FOLD512((R10)(R15*1), Z3, Z11)
	FOLD512((R14), Z4, Z12)
	FOLD512((R14)(R11*1), Z5, Z13)
	FOLD512((R14)(R11*2), Z6, Z14)
	FOLD512((R14)(R15*1), Z7, Z15)
	DECQ AX
	JNZ  part
	TESTQ R13, R13
	JZ   next
	VMOVUPS (R13), Z18
	ADDQ $64, R13
	LEAQ (DX)(R11*4), R14
	VFMADD231PS.BCST (DX), Z18, Z8
	VFMADD231PS.BCST (DX)(R11*1), Z18, Z9
	VFMADD231PS.BCST (DX)(R11*2), Z18, Z10
	VFMADD231PS.BCST (DX)(R15*1), Z18, Z11
	VFMADD231PS.BCST (R14), Z18, Z12
	VFMADD231PS.BCST (R14)(R11*1), Z18, Z13
	VFMADD231PS.BCST (R14)(R11*2), Z18, Z14
	VFMADD231PS.BCST (R14)(R15*1), Z18, Z15

next:
	ADDQ $4, R10
	ADDQ $4, DX
	DECQ CX
	JNZ  groups

	MOVQ tileArgs_dst(BX), AX
	VMOVUPS Z8, (AX)
	ADDQ tileArgs_dstStride(BX), AX
	VMOVUPS Z9, (AX)
	ADDQ tileArgs_dstStride(BX), AX
	VMOVUPS Z10, (AX)
	ADDQ tileArgs_dstStride(BX), AX
	VMOVUPS Z11, (AX)
	ADDQ tileArgs_dstStride(BX), AX
	VMOVUPS Z12, (AX)
	ADDQ tileArgs_dstStride(BX), AX
	VMOVUPS Z13, (AX)
	ADDQ tileArgs_dstStride(BX), AX
	VMOVUPS Z14, (AX)
	ADDQ tileArgs_dstStride(BX), AX
	VMOVUPS Z15, (AX)
	VZEROUPPER
	RET

// STREAM_BEGIN512 loads the arguments; Z4 becomes the outputs so far.
#define STREAM_BEGIN512 \
	MOVQ a+0(FP), BX \
	MOVQ streamArgs_records(BX), SI \
	MOVQ streamArgs_record(BX), R8 \
	MOVQ streamArgs_groups(BX), CX \
	MOVQ streamArgs_dst(BX), R9 \
	MOVQ streamArgs_x(BX), DX \
	MOVQ streamArgs_xScales(BX), R10 \
	MOVQ streamArgs_xSums(BX), R11 \
	MOVQ streamArgs_xTotals(BX), R12 \
	VPXORD Z4, Z4, Z4 \
	CMPQ streamArgs_add(BX), $0 \
	JEQ  2(PC) \
	VMOVUPS (R9), Z4

// STREAM_CHUNK512 takes eight columns, packed in 64 bytes at off of the record.
#define STREAM_CHUNK512(off, xoff) \
	PREFETCHT0 (AHEAD+off)(SI) \
	VMOVDQU32 off(SI), Z8 \
	VPANDD Z6, Z8, Z9 \
	VPDPWSSD.BCST xoff(DX), Z9, Z0 \
	VPSRLD $4, Z8, Z10 \
	VPANDD Z6, Z10, Z10 \
	VPDPWSSD.BCST (xoff+4)(DX), Z10, Z1 \
	VPSRLD $8, Z8, Z11 \
	VPANDD Z6, Z11, Z11 \
	VPDPWSSD.BCST (xoff+8)(DX), Z11, Z0 \
	VPSRLW $12, Z8, Z8 \
	VPDPWSSD.BCST (xoff+12)(DX), Z8, Z1

// STREAM_FOLD512 adds the sums in Z0 and Z1, scaled by Z8 times the token's scale, to the outputs.
#define STREAM_FOLD512 \
	VPADDD Z1, Z0, Z0 \
	VMULPS.BCST (R10), Z8, Z8 \
	VCVTDQ2PS Z0, Z0 \
	VFMADD231PS Z0, Z8, Z4

// func stream4AVX512(a *streamArgs)
TEXT ·stream4AVX512(SB), NOSPLIT, $0-8
	STREAM_BEGIN512
	VPTERNLOGD $0xff, Z6, Z6, Z6
	VPSRLW $12, Z6, Z6 // 15 in each half
	VPBROADCASTD streamArgs_bias(BX), Z7

streamGroup4:
	VPMULLD.BCST (R12), Z7, Z0
	VPXORD Z1, Z1, Z1
	VPSUBD Z0, Z1, Z0
	STREAM_CHUNK512(0, 0)
	STREAM_CHUNK512(64, 16)
	STREAM_CHUNK512(128, 32)
	STREAM_CHUNK512(192, 48)
	CMPQ streamArgs_half(BX), $0
	JEQ  streamFloats4
	VCVTPH2PS 256(SI), Z8
	STREAM_FOLD512
	CMPQ streamArgs_mins(BX), $0
	JEQ  streamNext4
	VCVTPH2PS 288(SI), Z8
	VFMADD231PS.BCST (R11), Z8, Z4
	JMP  streamNext4

streamFloats4:
	VMOVUPS 256(SI), Z8
	STREAM_FOLD512
	CMPQ streamArgs_mins(BX), $0
	JEQ  streamNext4
	VMOVUPS 320(SI), Z8
	VFMADD231PS.BCST (R11), Z8, Z4

streamNext4:
	PREFETCHT0 (AHEAD+256)(SI)
	ADDQ R8, SI
	ADDQ $64, DX
	ADDQ $4, R10
	ADDQ $4, R11
	ADDQ $4, R12
	DECQ CX
	JNZ  streamGroup4
	VMOVUPS Z4, (R9)
	VZEROUPPER
	RET

// STREAM_PAIR512 takes one pair of columns, 32 bytes at off of DI, into sum.
#define STREAM_PAIR512(off, xoff, w, sum) \
	VPMOVSXBW off(DI), w \
	VPDPWSSD.BCST xoff(DX), w, sum

// func stream8AVX512(a *streamArgs)
TEXT ·stream8AVX512(SB), NOSPLIT, $0-8
	STREAM_BEGIN512

streamGroup8:
	MOVQ SI, DI
	LEAQ 512(SI), R13 // scales
	MOVQ streamArgs_parts(BX), AX

streamPart8:
	VPXORD Z0, Z0, Z0
	VPXORD Z1, Z1, Z1

streamHalf8: // half a group; twice where the group has one scale
	PREFETCHT0 AHEAD(DI)
	PREFETCHT0 (AHEAD+64)(DI)
	PREFETCHT0 (AHEAD+128)(DI)
	PREFETCHT0 (AHEAD+192)(DI)
	STREAM_PAIR512(0, 0, Z8, Z0)
	STREAM_PAIR512(32, 4, Z9, Z1)
	STREAM_PAIR512(64, 8, Z10, Z0)
	STREAM_PAIR512(96, 12, Z11, Z1)
	STREAM_PAIR512(128, 16, Z8, Z0)
	STREAM_PAIR512(160, 20, Z9, Z1)
	STREAM_PAIR512(192, 24, Z10, Z0)
	STREAM_PAIR512(224, 28, Z11, Z1)
	ADDQ $256, DI
	ADDQ $32, DX
	CMPQ AX, $1
	JNE  streamScales8
	LEAQ 512(SI), R14
	CMPQ DI, R14
	JNE  streamHalf8

streamScales8:
	CMPQ streamArgs_half(BX), $0
	JEQ  streamFloats8
	VCVTPH2PS (R13), Z8
	JMP  streamFold8

streamFloats8:
	VMOVUPS (R13), Z8
	ADDQ $64, R13

streamFold8:
	STREAM_FOLD512
	DECQ AX
	JNZ  streamPart8
	PREFETCHT0 (AHEAD+512)(SI)
	ADDQ R8, SI
	ADDQ $4, R10
	DECQ CX
	JNZ  streamGroup8
	VMOVUPS Z4, (R9)
	VZEROUPPER
	RET
