//go:build !purego

#include "go_asm.h"
#include "textflag.h"

// Packed weights are read from front to back but by several workers in turns, a few KiB each, which hardware's own
// prefetching does not see through at once: hence PREFETCHT0, AHEAD bytes on.
#define AHEAD 2560

// func unpack4AVX2(dst *int16, src *byte, groups, record int, bias int16)
//
// A chunk is 64 bytes: eight columns of sixteen rows. Shifts bring the four pairs of a 32-bit lane to the low nibbles of its halves.
TEXT ·unpack4AVX2(SB), NOSPLIT, $0-34
	MOVQ dst+0(FP), DI
	MOVQ src+8(FP), SI
	MOVQ groups+16(FP), CX
	MOVQ record+24(FP), R8
	VPBROADCASTW bias+32(FP), Y7
	VPCMPEQW Y6, Y6, Y6
	VPSRLW $12, Y6, Y6 // 15 in each half

group4:
	MOVQ SI, R9
	MOVQ $4, DX

chunk4:
	PREFETCHT0 AHEAD(R9)
	VMOVDQU (R9), Y0
	VMOVDQU 32(R9), Y1
	VPAND Y6, Y0, Y2
	VPAND Y6, Y1, Y3
	VPSUBW Y7, Y2, Y2
	VPSUBW Y7, Y3, Y3
	VMOVDQU Y2, (DI)
	VMOVDQU Y3, 32(DI)
	VPSRLD $4, Y0, Y2
	VPSRLD $4, Y1, Y3
	VPAND Y6, Y2, Y2
	VPAND Y6, Y3, Y3
	VPSUBW Y7, Y2, Y2
	VPSUBW Y7, Y3, Y3
	VMOVDQU Y2, 64(DI)
	VMOVDQU Y3, 96(DI)
	VPSRLD $8, Y0, Y2
	VPSRLD $8, Y1, Y3
	VPAND Y6, Y2, Y2
	VPAND Y6, Y3, Y3
	VPSUBW Y7, Y2, Y2
	VPSUBW Y7, Y3, Y3
	VMOVDQU Y2, 128(DI)
	VMOVDQU Y3, 160(DI)
	VPSRLW $12, Y0, Y2
	VPSRLW $12, Y1, Y3
	VPSUBW Y7, Y2, Y2
	VPSUBW Y7, Y3, Y3
	VMOVDQU Y2, 192(DI)
	VMOVDQU Y3, 224(DI)
	ADDQ $64, R9
	ADDQ $256, DI
	DECQ DX
	JNZ  chunk4
	PREFETCHT0 AHEAD(R9)
	ADDQ R8, SI
	DECQ CX
	JNZ  group4
	VZEROUPPER
	RET

// func unpack8AVX2(dst *int16, src *byte, groups, record int)
TEXT ·unpack8AVX2(SB), NOSPLIT, $0-32
	MOVQ dst+0(FP), DI
	MOVQ src+8(FP), SI
	MOVQ groups+16(FP), CX
	MOVQ record+24(FP), R8

group8:
	MOVQ SI, R9
	MOVQ $8, DX

chunk8:
	PREFETCHT0 AHEAD(R9)
	VPMOVSXBW (R9), Y0
	VPMOVSXBW 16(R9), Y1
	VPMOVSXBW 32(R9), Y2
	VPMOVSXBW 48(R9), Y3
	VMOVDQU Y0, (DI)
	VMOVDQU Y1, 32(DI)
	VMOVDQU Y2, 64(DI)
	VMOVDQU Y3, 96(DI)
	ADDQ $64, R9
	ADDQ $128, DI
	DECQ DX
	JNZ  chunk8
	PREFETCHT0 AHEAD(R9)
	ADDQ R8, SI
	DECQ CX
	JNZ  group8
	VZEROUPPER
	RET

// func halvesAVX2(dst *float32, src *byte, groups, record int)
TEXT ·halvesAVX2(SB), NOSPLIT, $0-32
	MOVQ dst+0(FP), DI
	MOVQ src+8(FP), SI
	MOVQ groups+16(FP), CX
	MOVQ record+24(FP), R8

halves:
	VCVTPH2PS (SI), Y0
	VCVTPH2PS 16(SI), Y1
	VMOVUPS Y0, (DI)
	VMOVUPS Y1, 32(DI)
	ADDQ R8, SI
	ADDQ $64, DI
	DECQ CX
	JNZ  halves
	VZEROUPPER
	RET

DATA codeMax<>+0x00(SB)/4, $0x46fffe00 // 32767
GLOBL codeMax<>(SB), RODATA|NOPTR, $4
DATA codeOne<>+0x00(SB)/4, $0x3f800000 // 1
GLOBL codeOne<>(SB), RODATA|NOPTR, $4
DATA codeTiny<>+0x00(SB)/4, $0x0da24260 // 1e-30: below it a group counts as zero
GLOBL codeTiny<>(SB), RODATA|NOPTR, $4

// func codeAVX2(codes *int16, totals *int32, scales, sums, x *float32, groups int)
TEXT ·codeAVX2(SB), NOSPLIT, $0-48
	MOVQ codes+0(FP), DI
	MOVQ totals+8(FP), R10
	MOVQ scales+16(FP), R8
	MOVQ sums+24(FP), R9
	MOVQ x+32(FP), SI
	MOVQ groups+40(FP), CX
	VPCMPEQD Y15, Y15, Y15
	VPSRLD $1, Y15, Y14     // all bits but the sign
	VPSRLW $15, Y15, Y13    // 1 in each half
	VMOVSS codeMax<>(SB), X12
	VMOVSS codeOne<>(SB), X11
	VMOVSS codeTiny<>(SB), X10

group:
	VMOVUPS (SI), Y0
	VMOVUPS 32(SI), Y1
	VMOVUPS 64(SI), Y2
	VMOVUPS 96(SI), Y3

	// The largest magnitude, in X4.
	VANDPS Y14, Y0, Y4
	VANDPS Y14, Y1, Y5
	VANDPS Y14, Y2, Y6
	VANDPS Y14, Y3, Y7
	VMAXPS Y5, Y4, Y4
	VMAXPS Y7, Y6, Y6
	VMAXPS Y6, Y4, Y4
	VEXTRACTF128 $1, Y4, X5
	VMAXPS X5, X4, X4
	VPERMILPS $0x4e, X4, X5
	VMAXPS X5, X4, X4
	VPERMILPS $0xb1, X4, X5
	VMAXPS X5, X4, X4

	// Zero, or NaN where a value is no finite number: VMAXPS may lose it. In X6.
	VADDPS Y1, Y0, Y6
	VADDPS Y3, Y2, Y7
	VADDPS Y7, Y6, Y6
	VSUBPS Y6, Y6, Y6
	VEXTRACTF128 $1, Y6, X7
	VADDPS X7, X6, X6
	VHADDPS X6, X6, X6
	VHADDPS X6, X6, X6

	// Scale in X5, its inverse in Y8.
	VDIVSS X12, X4, X5
	VDIVSS X4, X12, X8
	VCMPSS $14, X10, X4, X9 // greater than tiny
	VANDPS X9, X5, X5
	VANDPS X9, X8, X8
	VADDSS X6, X5, X5
	VMOVSS X5, (R8)
	VBROADCASTSS X8, Y8

	VMULPS Y8, Y0, Y0
	VMULPS Y8, Y1, Y1
	VMULPS Y8, Y2, Y2
	VMULPS Y8, Y3, Y3
	VCVTPS2DQ Y0, Y0
	VCVTPS2DQ Y1, Y1
	VCVTPS2DQ Y2, Y2
	VCVTPS2DQ Y3, Y3
	VPACKSSDW Y1, Y0, Y0
	VPACKSSDW Y3, Y2, Y2
	VPERMQ $0xd8, Y0, Y0
	VPERMQ $0xd8, Y2, Y2
	VMOVDQU Y0, (DI)
	VMOVDQU Y2, 32(DI)

	// The sum of the codes, and that scaled.
	VPMADDWD Y13, Y0, Y0
	VPMADDWD Y13, Y2, Y2
	VPADDD Y2, Y0, Y0
	VEXTRACTI128 $1, Y0, X1
	VPADDD X1, X0, X0
	VPSHUFD $0x4e, X0, X1
	VPADDD X1, X0, X0
	VPSHUFD $0xb1, X0, X1
	VPADDD X1, X0, X0
	VMOVD X0, (R10)
	VCVTDQ2PS X0, X0
	VMULSS X5, X0, X0
	VMOVSS X0, (R9)

	ADDQ $128, SI
	ADDQ $64, DI
	ADDQ $4, R8
	ADDQ $4, R9
	ADDQ $4, R10
	DECQ CX
	JNZ  group
	VZEROUPPER
	RET

// PAIR takes one pair of columns at byte off of the activations and 16·off of the codes.
#define PAIR(off) \
	VMOVDQU (16*off)(DI), Y8 \
	VMOVDQU (16*off+32)(DI), Y9 \
	VPBROADCASTD off(SI), Y10 \
	VPMADDWD Y8, Y10, Y11 \
	VPMADDWD Y9, Y10, Y12 \
	VPADDD Y11, Y0, Y0 \
	VPADDD Y12, Y1, Y1 \
	VPBROADCASTD off(SI)(R8*1), Y13 \
	VPMADDWD Y8, Y13, Y14 \
	VPMADDWD Y9, Y13, Y15 \
	VPADDD Y14, Y2, Y2 \
	VPADDD Y15, Y3, Y3 \
	VPBROADCASTD off(SI)(R8*2), Y10 \
	VPMADDWD Y8, Y10, Y11 \
	VPMADDWD Y9, Y10, Y12 \
	VPADDD Y11, Y4, Y4 \
	VPADDD Y12, Y5, Y5 \
	VPBROADCASTD off(SI)(R9*1), Y13 \
	VPMADDWD Y8, Y13, Y14 \
	VPMADDWD Y9, Y13, Y15 \
	VPADDD Y14, Y6, Y6 \
	VPADDD Y15, Y7, Y7

// FOLD adds a token's integer sums a and b, scaled, to its outputs at off of the stack. Y8 and Y9 are the weights' scales.
#define FOLD(xscale, a, b, off) \
	VBROADCASTSS xscale, Y10 \
	VMULPS Y10, Y8, Y11 \
	VMULPS Y10, Y9, Y12 \
	VCVTDQ2PS a, a \
	VCVTDQ2PS b, b \
	VMOVUPS off(SP), Y13 \
	VMOVUPS (off+32)(SP), Y14 \
	VFMADD231PS a, Y11, Y13 \
	VFMADD231PS b, Y12, Y14 \
	VMOVUPS Y13, off(SP) \
	VMOVUPS Y14, (off+32)(SP)

// FOLDMIN is FOLD, and adds the token's share of the mins at R13 too.
#define FOLDMIN(xscale, xsum, a, b, off) \
	VBROADCASTSS xscale, Y10 \
	VMULPS Y10, Y8, Y11 \
	VMULPS Y10, Y9, Y12 \
	VBROADCASTSS xsum, Y15 \
	VCVTDQ2PS a, a \
	VCVTDQ2PS b, b \
	VMOVUPS off(SP), Y13 \
	VMOVUPS (off+32)(SP), Y14 \
	VFMADD231PS a, Y11, Y13 \
	VFMADD231PS b, Y12, Y14 \
	VFMADD231PS (R13), Y15, Y13 \
	VFMADD231PS 32(R13), Y15, Y14 \
	VMOVUPS Y13, off(SP) \
	VMOVUPS Y14, (off+32)(SP)

// func tile4AVX2(a *tileArgs)
TEXT ·tile4AVX2(SB), NOSPLIT, $256-8
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
	VXORPS Y0, Y0, Y0
	VMOVUPS Y0, 0(SP)
	VMOVUPS Y0, 32(SP)
	VMOVUPS Y0, 64(SP)
	VMOVUPS Y0, 96(SP)
	VMOVUPS Y0, 128(SP)
	VMOVUPS Y0, 160(SP)
	VMOVUPS Y0, 192(SP)
	VMOVUPS Y0, 224(SP)
	CMPQ tileArgs_add(BX), $0
	JEQ  groups4
	MOVQ tileArgs_dst(BX), AX
	VMOVUPS (AX), Y0
	VMOVUPS 32(AX), Y1
	VMOVUPS Y0, 0(SP)
	VMOVUPS Y1, 32(SP)
	ADDQ tileArgs_dstStride(BX), AX
	VMOVUPS (AX), Y0
	VMOVUPS 32(AX), Y1
	VMOVUPS Y0, 64(SP)
	VMOVUPS Y1, 96(SP)
	ADDQ tileArgs_dstStride(BX), AX
	VMOVUPS (AX), Y0
	VMOVUPS 32(AX), Y1
	VMOVUPS Y0, 128(SP)
	VMOVUPS Y1, 160(SP)
	ADDQ tileArgs_dstStride(BX), AX
	VMOVUPS (AX), Y0
	VMOVUPS 32(AX), Y1
	VMOVUPS Y0, 192(SP)
	VMOVUPS Y1, 224(SP)

groups4:
	MOVQ tileArgs_parts(BX), AX

part4:
	VPXOR Y0, Y0, Y0
	VPXOR Y1, Y1, Y1
	VPXOR Y2, Y2, Y2
	VPXOR Y3, Y3, Y3
	VPXOR Y4, Y4, Y4
	VPXOR Y5, Y5, Y5
	VPXOR Y6, Y6, Y6
	VPXOR Y7, Y7, Y7
	PAIR(0)
	PAIR(4)
	PAIR(8)
	PAIR(12)
	PAIR(16)
	PAIR(20)
	PAIR(24)
	PAIR(28)
	ADDQ $32, SI
	ADDQ $512, DI
	CMPQ tileArgs_parts(BX), $1
	JNE  fold4
	PAIR(0)
	PAIR(4)
	PAIR(8)
	PAIR(12)
	PAIR(16)
	PAIR(20)
	PAIR(24)
	PAIR(28)
	ADDQ $32, SI
	ADDQ $512, DI

fold4:
	VMOVUPS (R12), Y8
	VMOVUPS 32(R12), Y9
	ADDQ $64, R12
	TESTQ R13, R13
	JNZ  foldMin4
	FOLD((R10), Y0, Y1, 0)
	FOLD((R10)(R11*1), Y2, Y3, 64)
	FOLD((R10)(R11*2), Y4, Y5, 128)
	FOLD((R10)(R15*1), Y6, Y7, 192)
	DECQ AX
	JNZ  part4
	JMP  next4

foldMin4:
	FOLDMIN((R10), (DX), Y0, Y1, 0)
	FOLDMIN((R10)(R11*1), (DX)(R11*1), Y2, Y3, 64)
	FOLDMIN((R10)(R11*2), (DX)(R11*2), Y4, Y5, 128)
	FOLDMIN((R10)(R15*1), (DX)(R15*1), Y6, Y7, 192)
	ADDQ $64, R13

next4:
	ADDQ $4, R10
	ADDQ $4, DX
	DECQ CX
	JNZ  groups4

	MOVQ tileArgs_dst(BX), AX
	VMOVUPS 0(SP), Y0
	VMOVUPS 32(SP), Y1
	VMOVUPS Y0, (AX)
	VMOVUPS Y1, 32(AX)
	ADDQ tileArgs_dstStride(BX), AX
	VMOVUPS 64(SP), Y0
	VMOVUPS 96(SP), Y1
	VMOVUPS Y0, (AX)
	VMOVUPS Y1, 32(AX)
	ADDQ tileArgs_dstStride(BX), AX
	VMOVUPS 128(SP), Y0
	VMOVUPS 160(SP), Y1
	VMOVUPS Y0, (AX)
	VMOVUPS Y1, 32(AX)
	ADDQ tileArgs_dstStride(BX), AX
	VMOVUPS 192(SP), Y0
	VMOVUPS 224(SP), Y1
	VMOVUPS Y0, (AX)
	VMOVUPS Y1, 32(AX)
	VZEROUPPER
	RET

// STREAM_BEGIN loads the arguments; Y4 and Y5 become the outputs so far.
#define STREAM_BEGIN \
	MOVQ a+0(FP), BX \
	MOVQ streamArgs_records(BX), SI \
	MOVQ streamArgs_record(BX), R8 \
	MOVQ streamArgs_groups(BX), CX \
	MOVQ streamArgs_dst(BX), R9 \
	MOVQ streamArgs_x(BX), DX \
	MOVQ streamArgs_xScales(BX), R10 \
	MOVQ streamArgs_xSums(BX), R11 \
	MOVQ streamArgs_xTotals(BX), R12 \
	VXORPS Y4, Y4, Y4 \
	VXORPS Y5, Y5, Y5 \
	CMPQ streamArgs_add(BX), $0 \
	JEQ  3(PC) \
	VMOVUPS (R9), Y4 \
	VMOVUPS 32(R9), Y5

// STREAM_SUM takes weights a and b, and the token's pair of columns at byte off, into sums sa and sb.
#define STREAM_SUM(off, a, b, sa, sb) \
	VPBROADCASTD off(DX), Y10 \
	VPMADDWD a, Y10, a \
	VPMADDWD b, Y10, b \
	VPADDD a, sa, sa \
	VPADDD b, sb, sb

// STREAM_CHUNK4 takes eight columns, packed in 64 bytes at off of the record.
#define STREAM_CHUNK4(off, xoff) \
	PREFETCHT0 (AHEAD+off)(SI) \
	VMOVDQU off(SI), Y8 \
	VMOVDQU (off+32)(SI), Y9 \
	VPAND Y6, Y8, Y11 \
	VPAND Y6, Y9, Y12 \
	STREAM_SUM(xoff, Y11, Y12, Y0, Y1) \
	VPSRLD $4, Y8, Y11 \
	VPSRLD $4, Y9, Y12 \
	VPAND Y6, Y11, Y11 \
	VPAND Y6, Y12, Y12 \
	STREAM_SUM(xoff+4, Y11, Y12, Y2, Y3) \
	VPSRLD $8, Y8, Y11 \
	VPSRLD $8, Y9, Y12 \
	VPAND Y6, Y11, Y11 \
	VPAND Y6, Y12, Y12 \
	STREAM_SUM(xoff+8, Y11, Y12, Y0, Y1) \
	VPSRLW $12, Y8, Y8 \
	VPSRLW $12, Y9, Y9 \
	STREAM_SUM(xoff+12, Y8, Y9, Y2, Y3)

// STREAM_PAIR8 takes one pair of columns, 32 bytes at off of DI.
#define STREAM_PAIR8(off, xoff, sa, sb) \
	VPMOVSXBW off(DI), Y8 \
	VPMOVSXBW (off+16)(DI), Y9 \
	STREAM_SUM(xoff, Y8, Y9, sa, sb)

// STREAM_FOLD adds the sums in Y0 to Y3, scaled by Y8 and Y9 times the token's scale, to the outputs.
#define STREAM_FOLD \
	VPADDD Y2, Y0, Y0 \
	VPADDD Y3, Y1, Y1 \
	VBROADCASTSS (R10), Y10 \
	VMULPS Y8, Y10, Y11 \
	VMULPS Y9, Y10, Y12 \
	VCVTDQ2PS Y0, Y0 \
	VCVTDQ2PS Y1, Y1 \
	VFMADD231PS Y0, Y11, Y4 \
	VFMADD231PS Y1, Y12, Y5

// func stream4AVX2(a *streamArgs)
TEXT ·stream4AVX2(SB), NOSPLIT, $0-8
	STREAM_BEGIN
	VPCMPEQW Y6, Y6, Y6
	VPSRLW $12, Y6, Y6 // 15 in each half
	VPBROADCASTD streamArgs_bias(BX), Y7

streamGroup4:
	// The bias times the sum of the token's codes, at once.
	VPBROADCASTD (R12), Y0
	VPMULLD Y7, Y0, Y0
	VPXOR Y2, Y2, Y2
	VPXOR Y3, Y3, Y3
	VPSUBD Y0, Y2, Y0
	VMOVDQA Y0, Y1
	STREAM_CHUNK4(0, 0)
	STREAM_CHUNK4(64, 16)
	STREAM_CHUNK4(128, 32)
	STREAM_CHUNK4(192, 48)
	CMPQ streamArgs_half(BX), $0
	JEQ  streamFloats4
	VCVTPH2PS 256(SI), Y8
	VCVTPH2PS 272(SI), Y9
	STREAM_FOLD
	CMPQ streamArgs_mins(BX), $0
	JEQ  streamNext4
	VCVTPH2PS 288(SI), Y8
	VCVTPH2PS 304(SI), Y9
	JMP  streamMins4

streamFloats4:
	VMOVUPS 256(SI), Y8
	VMOVUPS 288(SI), Y9
	STREAM_FOLD
	CMPQ streamArgs_mins(BX), $0
	JEQ  streamNext4
	VMOVUPS 320(SI), Y8
	VMOVUPS 352(SI), Y9

streamMins4:
	VBROADCASTSS (R11), Y10
	VFMADD231PS Y8, Y10, Y4
	VFMADD231PS Y9, Y10, Y5

streamNext4:
	PREFETCHT0 (AHEAD+256)(SI)
	ADDQ R8, SI
	ADDQ $64, DX
	ADDQ $4, R10
	ADDQ $4, R11
	ADDQ $4, R12
	DECQ CX
	JNZ  streamGroup4
	VMOVUPS Y4, (R9)
	VMOVUPS Y5, 32(R9)
	VZEROUPPER
	RET

// func stream8AVX2(a *streamArgs)
TEXT ·stream8AVX2(SB), NOSPLIT, $0-8
	STREAM_BEGIN

streamGroup8:
	MOVQ SI, DI
	LEAQ 512(SI), R13 // scales
	MOVQ streamArgs_parts(BX), AX

streamPart8:
	VPXOR Y0, Y0, Y0
	VPXOR Y1, Y1, Y1
	VPXOR Y2, Y2, Y2
	VPXOR Y3, Y3, Y3

streamHalf8: // half a group; twice where the group has one scale
	PREFETCHT0 AHEAD(DI)
	PREFETCHT0 (AHEAD+64)(DI)
	PREFETCHT0 (AHEAD+128)(DI)
	PREFETCHT0 (AHEAD+192)(DI)
	STREAM_PAIR8(0, 0, Y0, Y1)
	STREAM_PAIR8(32, 4, Y2, Y3)
	STREAM_PAIR8(64, 8, Y0, Y1)
	STREAM_PAIR8(96, 12, Y2, Y3)
	STREAM_PAIR8(128, 16, Y0, Y1)
	STREAM_PAIR8(160, 20, Y2, Y3)
	STREAM_PAIR8(192, 24, Y0, Y1)
	STREAM_PAIR8(224, 28, Y2, Y3)
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
	VCVTPH2PS (R13), Y8
	VCVTPH2PS 16(R13), Y9
	JMP  streamFold8

streamFloats8:
	VMOVUPS (R13), Y8
	VMOVUPS 32(R13), Y9
	ADDQ $64, R13

streamFold8:
	STREAM_FOLD
	DECQ AX
	JNZ  streamPart8
	PREFETCHT0 (AHEAD+512)(SI)
	ADDQ R8, SI
	ADDQ $4, R10
	DECQ CX
	JNZ  streamGroup8
	VMOVUPS Y4, (R9)
	VMOVUPS Y5, 32(R9)
	VZEROUPPER
	RET
