//go:build !purego

#include "go_asm.h"
#include "textflag.h"

// Products on AMX tiles. A 16-bit code of an activation is 256·high + low, high signed and low not, so that two products of bytes, added as
// integers, are the product of the code: the same sums as VPDPWSSD makes, and the same bits once they are scaled as in tile512_amd64.s.

// How far ahead packed weights are fetched, in bytes, as in tile_amd64.s.
#define AHEAD 2560

// The assembler does not know these instructions. Intel's encodings, as GNU as writes them:
#define LDTILECFG_AX BYTE $0xc4; BYTE $0xe2; BYTE $0x78; BYTE $0x49; BYTE $0x00
#define TILERELEASE BYTE $0xc4; BYTE $0xe2; BYTE $0x78; BYTE $0x49; BYTE $0xc0
#define TILEZERO_0 BYTE $0xc4; BYTE $0xe2; BYTE $0x7b; BYTE $0x49; BYTE $0xc0
#define TILEZERO_1 BYTE $0xc4; BYTE $0xe2; BYTE $0x7b; BYTE $0x49; BYTE $0xc8
#define TILEZERO_2 BYTE $0xc4; BYTE $0xe2; BYTE $0x7b; BYTE $0x49; BYTE $0xd0
#define TILEZERO_3 BYTE $0xc4; BYTE $0xe2; BYTE $0x7b; BYTE $0x49; BYTE $0xd8

// Tile 6, weights: [columns/4 × rows × 4] at DI, AX bytes a row of it. Tiles 4 and 5, high and low bytes of sixteen tokens: at SI and 32
// bytes further, DX bytes a token.
#define TILELOAD_6_DI_AX BYTE $0xc4; BYTE $0xe2; BYTE $0x7b; BYTE $0x4b; BYTE $0x34; BYTE $0x07
#define TILELOAD_4_SI_DX BYTE $0xc4; BYTE $0xe2; BYTE $0x7b; BYTE $0x4b; BYTE $0x24; BYTE $0x16
#define TILELOAD_5_32_SI_DX BYTE $0xc4; BYTE $0xe2; BYTE $0x7b; BYTE $0x4b; BYTE $0x6c; BYTE $0x16; BYTE $0x20

// Tile 0 += 4·6, signed; tile 1 += 5·6, unsigned by signed.
#define TDPBSSD_0_4_6 BYTE $0xc4; BYTE $0xe2; BYTE $0x4b; BYTE $0x5e; BYTE $0xc4
#define TDPBUSD_1_5_6 BYTE $0xc4; BYTE $0xe2; BYTE $0x49; BYTE $0x5e; BYTE $0xcd

// Tiles 0 and 1 to CX and 1,024 bytes further, AX bytes a row.
#define TILESTORE_0_CX_AX BYTE $0xc4; BYTE $0xe2; BYTE $0x7a; BYTE $0x4b; BYTE $0x04; BYTE $0x01
#define TILESTORE_1_1024_CX_AX BYTE $0xc4; BYTE $0xe2; BYTE $0x7a; BYTE $0x4b; BYTE $0x8c; BYTE $0x01; BYTE $0x00; BYTE $0x04; BYTE $0x00; BYTE $0x00

// func xcr0() uint32
TEXT ·xcr0(SB), NOSPLIT, $0-4
	XORL CX, CX
	XGETBV
	MOVL AX, ret+0(FP)
	RET

// TILE_LOAD and TILE_STORE move the outputs of token n, as long as there are so many. R15 is the token's place.
#define TILE_LOAD(n, out) \
	CMPQ R14, $n \
	JLE  groups \
	VMOVUPS (R15), out \
	ADDQ R13, R15
#define TILE_STORE(n, out) \
	CMPQ R14, $n \
	JLE  stored \
	VMOVUPS out, (R15) \
	ADDQ R13, R15

// TILE_ROW adds the sums of the token at byte off of the stored tiles to its outputs. Z0 is the weights' scales, R15 points at the token's.
#define TILE_ROW(off, out) \
	VMOVDQU32 off(CX), Z2 \
	VPSLLD $8, Z2, Z2 \
	VPADDD (1024+off)(CX), Z2, Z2 \
	VMULPS.BCST (R15), Z0, Z3 \
	VCVTDQ2PS Z2, Z2 \
	VFMADD231PS Z2, Z3, out \
	ADDQ R10, R15

// TILE_MIN adds a token's share of the mins in Z1.
#define TILE_MIN(out) \
	VFMADD231PS.BCST (R15), Z1, out \
	ADDQ R10, R15

// func tilesAMX(a *amxArgs)
//
// The frame holds what moves from block to block: at 0 the outputs, at 8 the tokens' bytes, at 16 their scales, at 24 their sums, at 32 how
// many tokens are left. (In a they would point past their arrays in the end, which the garbage collector takes for an error.)
TEXT ·tilesAMX(SB), NOSPLIT, $40-8
	MOVQ a+0(FP), BX
	MOVQ amxArgs_dst(BX), AX
	MOVQ AX, 0(SP)
	MOVQ amxArgs_x(BX), AX
	MOVQ AX, 8(SP)
	MOVQ amxArgs_xScales(BX), AX
	MOVQ AX, 16(SP)
	MOVQ amxArgs_xSums(BX), AX
	MOVQ AX, 24(SP)
	MOVQ amxArgs_tokens(BX), AX
	MOVQ AX, 32(SP)
	MOVQ amxArgs_config(BX), AX
	LDTILECFG_AX

block: // of sixteen tokens; rows past the last one are computed and not stored
	VPXORD Z16, Z16, Z16
	VPXORD Z17, Z17, Z17
	VPXORD Z18, Z18, Z18
	VPXORD Z19, Z19, Z19
	VPXORD Z20, Z20, Z20
	VPXORD Z21, Z21, Z21
	VPXORD Z22, Z22, Z22
	VPXORD Z23, Z23, Z23
	VPXORD Z24, Z24, Z24
	VPXORD Z25, Z25, Z25
	VPXORD Z26, Z26, Z26
	VPXORD Z27, Z27, Z27
	VPXORD Z28, Z28, Z28
	VPXORD Z29, Z29, Z29
	VPXORD Z30, Z30, Z30
	VPXORD Z31, Z31, Z31
	MOVQ 32(SP), R14
	MOVQ amxArgs_dstStride(BX), R13
	MOVQ 0(SP), R15
	CMPQ amxArgs_add(BX), $0
	JEQ  groups
	TILE_LOAD(0, Z16)
	TILE_LOAD(1, Z17)
	TILE_LOAD(2, Z18)
	TILE_LOAD(3, Z19)
	TILE_LOAD(4, Z20)
	TILE_LOAD(5, Z21)
	TILE_LOAD(6, Z22)
	TILE_LOAD(7, Z23)
	TILE_LOAD(8, Z24)
	TILE_LOAD(9, Z25)
	TILE_LOAD(10, Z26)
	TILE_LOAD(11, Z27)
	TILE_LOAD(12, Z28)
	TILE_LOAD(13, Z29)
	TILE_LOAD(14, Z30)
	TILE_LOAD(15, Z31)

groups:
	MOVQ $64, AX
	MOVQ amxArgs_buffer(BX), CX
	MOVQ amxArgs_codes(BX), DI
	MOVQ 8(SP), SI
	MOVQ amxArgs_xStride(BX), DX
	MOVQ 16(SP), R8
	MOVQ 24(SP), R9
	MOVQ amxArgs_groupStride(BX), R10
	MOVQ amxArgs_scales(BX), R11
	MOVQ amxArgs_mins(BX), R12
	MOVQ amxArgs_groups(BX), R13

group:
	MOVQ amxArgs_parts(BX), R14

part:
	TILEZERO_0
	TILEZERO_1
	TILELOAD_6_DI_AX
	TILELOAD_4_SI_DX
	TDPBSSD_0_4_6
	TILELOAD_5_32_SI_DX
	TDPBUSD_1_5_6
	TILESTORE_0_CX_AX
	TILESTORE_1_1024_CX_AX
	VMOVUPS (R11), Z0
	ADDQ $64, R11
	MOVQ R8, R15
	TILE_ROW(0, Z16)
	TILE_ROW(64, Z17)
	TILE_ROW(128, Z18)
	TILE_ROW(192, Z19)
	TILE_ROW(256, Z20)
	TILE_ROW(320, Z21)
	TILE_ROW(384, Z22)
	TILE_ROW(448, Z23)
	TILE_ROW(512, Z24)
	TILE_ROW(576, Z25)
	TILE_ROW(640, Z26)
	TILE_ROW(704, Z27)
	TILE_ROW(768, Z28)
	TILE_ROW(832, Z29)
	TILE_ROW(896, Z30)
	TILE_ROW(960, Z31)
	XORQ $2048, CX // the other half of the buffer: the next tiles need not wait for these rows
	ADDQ amxArgs_partCodes(BX), DI
	ADDQ $16, SI
	DECQ R14
	JNZ  part
	ADDQ amxArgs_rest(BX), SI
	TESTQ R12, R12
	JZ   next
	VMOVUPS (R12), Z1
	ADDQ $64, R12
	MOVQ R9, R15
	TILE_MIN(Z16)
	TILE_MIN(Z17)
	TILE_MIN(Z18)
	TILE_MIN(Z19)
	TILE_MIN(Z20)
	TILE_MIN(Z21)
	TILE_MIN(Z22)
	TILE_MIN(Z23)
	TILE_MIN(Z24)
	TILE_MIN(Z25)
	TILE_MIN(Z26)
	TILE_MIN(Z27)
	TILE_MIN(Z28)
	TILE_MIN(Z29)
	TILE_MIN(Z30)
	TILE_MIN(Z31)

next:
	ADDQ $4, R8
	ADDQ $4, R9
	DECQ R13
	JNZ  group

	MOVQ 32(SP), R14
	MOVQ amxArgs_dstStride(BX), R13
	MOVQ 0(SP), R15
	TILE_STORE(0, Z16)
	TILE_STORE(1, Z17)
	TILE_STORE(2, Z18)
	TILE_STORE(3, Z19)
	TILE_STORE(4, Z20)
	TILE_STORE(5, Z21)
	TILE_STORE(6, Z22)
	TILE_STORE(7, Z23)
	TILE_STORE(8, Z24)
	TILE_STORE(9, Z25)
	TILE_STORE(10, Z26)
	TILE_STORE(11, Z27)
	TILE_STORE(12, Z28)
	TILE_STORE(13, Z29)
	TILE_STORE(14, Z30)
	TILE_STORE(15, Z31)
	MOVQ R15, 0(SP)
	SHLQ $4, DX
	ADDQ DX, 8(SP)
	SHLQ $4, R10
	ADDQ R10, 16(SP)
	ADDQ R10, 24(SP)
	SUBQ $16, 32(SP)
	JNZ  block

stored:
	TILERELEASE
	VZEROUPPER
	RET

// func unpackBytes4(dst *int8, src *byte, groups, record int, bias int8)
//
// A chunk is 64 bytes, eight columns of sixteen rows, and becomes two rows of a tile: columns 0, 4, 1, 5 and 2, 6, 3, 7 of each row
// of weights, which is how the nibbles lie. splitCodes puts activations in the same order.
TEXT ·unpackBytes4(SB), NOSPLIT, $0-33
	MOVQ dst+0(FP), DI
	MOVQ src+8(FP), SI
	MOVQ groups+16(FP), CX
	MOVQ record+24(FP), R8
	VPBROADCASTB bias+32(FP), Z7
	VPTERNLOGD $0xff, Z6, Z6, Z6
	VPSRLW $12, Z6, Z6
	VPSLLW $8, Z6, Z5
	VPORD Z5, Z6, Z6 // 15 in each byte

group4:
	MOVQ SI, R9
	MOVQ $4, DX

chunk4:
	PREFETCHT0 AHEAD(R9)
	VMOVDQU32 (R9), Z0
	VPANDD Z6, Z0, Z1
	VPSRLW $4, Z0, Z0
	VPANDD Z6, Z0, Z0
	VPSUBB Z7, Z1, Z1
	VPSUBB Z7, Z0, Z0
	VMOVDQU32 Z1, (DI)
	VMOVDQU32 Z0, 64(DI)
	ADDQ $64, R9
	ADDQ $128, DI
	DECQ DX
	JNZ  chunk4
	ADDQ R8, SI
	DECQ CX
	JNZ  group4
	VZEROUPPER
	RET

// Bytes 0, 2, 1, 3 of each four.
DATA middle<>+0x00(SB)/8, $0x0705060403010200
DATA middle<>+0x08(SB)/8, $0x0f0d0e0c0b090a08
GLOBL middle<>(SB), RODATA|NOPTR, $16

// Bytes 0, 4, 1, 5, 2, 6, 3, 7 of each eight.
DATA eights<>+0x00(SB)/8, $0x0703060205010400
DATA eights<>+0x08(SB)/8, $0x0f0b0e0a0d090c08
GLOBL eights<>(SB), RODATA|NOPTR, $16

// func unpackBytes8(dst *int8, src *byte, groups, record int)
//
// Columns in the order of unpackBytes4.
TEXT ·unpackBytes8(SB), NOSPLIT, $0-32
	MOVQ dst+0(FP), DI
	MOVQ src+8(FP), SI
	MOVQ groups+16(FP), CX
	MOVQ record+24(FP), R8
	VBROADCASTI32X4 middle<>(SB), Z7

group8:
	MOVQ SI, R9
	MOVQ $4, DX

chunk8: // four pairs of columns, 32 bytes each
	PREFETCHT0 AHEAD(R9)
	PREFETCHT0 (AHEAD+64)(R9)
	VPMOVZXWD (R9), Z0
	VPMOVZXWD 32(R9), Z1
	VPMOVZXWD 64(R9), Z2
	VPMOVZXWD 96(R9), Z3
	VPSLLD $16, Z2, Z2
	VPSLLD $16, Z3, Z3
	VPORD Z2, Z0, Z0
	VPORD Z3, Z1, Z1
	VPSHUFB Z7, Z0, Z0
	VPSHUFB Z7, Z1, Z1
	VMOVDQU32 Z0, (DI)
	VMOVDQU32 Z1, 64(DI)
	ADDQ $128, R9
	ADDQ $128, DI
	DECQ DX
	JNZ  chunk8
	ADDQ R8, SI
	DECQ CX
	JNZ  group8
	VZEROUPPER
	RET

// func splitCodes(dst *int8, codes *int16, groups int)
TEXT ·splitCodes(SB), NOSPLIT, $0-24
	MOVQ dst+0(FP), DI
	MOVQ codes+8(FP), SI
	MOVQ groups+16(FP), CX
	VBROADCASTI128 eights<>(SB), Y7
	VPCMPEQW Y6, Y6, Y6
	VPSRLW $8, Y6, Y6 // 255 in each half

split:
	VMOVDQU (SI), Y0
	VMOVDQU 32(SI), Y1
	VPSRAW $8, Y0, Y2
	VPSRAW $8, Y1, Y3
	VPACKSSWB Y3, Y2, Y2
	VPERMQ $0xd8, Y2, Y2
	VPSHUFB Y7, Y2, Y2
	VMOVDQU Y2, (DI)
	VPAND Y6, Y0, Y2
	VPAND Y6, Y1, Y3
	VPACKUSWB Y3, Y2, Y2
	VPERMQ $0xd8, Y2, Y2
	VPSHUFB Y7, Y2, Y2
	VMOVDQU Y2, 32(DI)
	ADDQ $64, SI
	ADDQ $64, DI
	DECQ CX
	JNZ  split
	VZEROUPPER
	RET
