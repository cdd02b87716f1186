//go:build !purego

#include "textflag.h"
#include "exp512_amd64.h"

// Attention's inner loops on AVX-512, the twins of attend_amd64.s and exp_amd64.s.

// func rotateAVX512(dst, src, turns *float32, heads, n, d int, scale float32)
//
// y·(-sin) added is y·sin taken away, to the last bit.
TEXT ·rotateAVX512(SB), NOSPLIT, $0-52
	MOVQ dst+0(FP), DI
	MOVQ src+8(FP), SI
	MOVQ turns+16(FP), DX
	MOVQ n+32(FP), CX
	MOVQ d+40(FP), R8
	SHLQ $2, R8 // bytes a head
	VBROADCASTSS scale+48(FP), Z7
	MOVL $0x80000000, AX
	VPBROADCASTQ AX, Z6 // the signs of even values

pairs:
	PREFETCHT0 1024(DX)
	VMOVSLDUP (DX), Z2 // cosines
	VMOVSHDUP (DX), Z3
	VPXORQ Z6, Z3, Z3  // -sine, sine
	MOVQ heads+24(FP), R9
	MOVQ SI, R10
	MOVQ DI, R11

head:
	VMULPS (R10), Z7, Z0
	VPERMILPS $0xb1, Z0, Z4 // each pair the other way round
	VMULPS Z2, Z0, Z0
	VMULPS Z3, Z4, Z4
	VADDPS Z4, Z0, Z0
	VMOVUPS Z0, (R11)
	ADDQ R8, R10
	ADDQ R8, R11
	DECQ R9
	JNZ  head
	ADDQ $64, SI
	ADDQ $64, DI
	ADDQ $64, DX
	SUBQ $16, CX
	JNZ  pairs
	VZEROUPPER
	RET

// func scoresAVX512(dst, q, keys *float32, rows, d int)
//
// Two vectors hold a value of all KeyTile keys. Six rows at a time, or three: a group of query heads when one token asks.
TEXT ·scoresAVX512(SB), NOSPLIT, $0-40
	MOVQ dst+0(FP), DI
	MOVQ q+8(FP), SI
	MOVQ keys+16(FP), DX
	MOVQ rows+24(FP), CX
	MOVQ d+32(FP), R8
	MOVQ R8, R12
	SHLQ $2, R12 // bytes a row

six:
	CMPQ CX, $6
	JLT  three
	LEAQ (SI)(R12*1), R9
	LEAQ (SI)(R12*2), R10
	LEAQ (R9)(R12*2), R11
	LEAQ (R10)(R12*2), R13
	LEAQ (R11)(R12*2), R14
	VPXORD Z0, Z0, Z0
	VPXORD Z1, Z1, Z1
	VPXORD Z2, Z2, Z2
	VPXORD Z3, Z3, Z3
	VPXORD Z4, Z4, Z4
	VPXORD Z5, Z5, Z5
	VPXORD Z6, Z6, Z6
	VPXORD Z7, Z7, Z7
	VPXORD Z8, Z8, Z8
	VPXORD Z9, Z9, Z9
	VPXORD Z10, Z10, Z10
	VPXORD Z11, Z11, Z11
	MOVQ DX, BX
	XORQ AX, AX

value6:
	VMOVUPS (BX), Z30
	VMOVUPS 64(BX), Z31
	VBROADCASTSS (SI)(AX*4), Z20
	VFMADD231PS Z30, Z20, Z0
	VFMADD231PS Z31, Z20, Z1
	VBROADCASTSS (R9)(AX*4), Z21
	VFMADD231PS Z30, Z21, Z2
	VFMADD231PS Z31, Z21, Z3
	VBROADCASTSS (R10)(AX*4), Z22
	VFMADD231PS Z30, Z22, Z4
	VFMADD231PS Z31, Z22, Z5
	VBROADCASTSS (R11)(AX*4), Z23
	VFMADD231PS Z30, Z23, Z6
	VFMADD231PS Z31, Z23, Z7
	VBROADCASTSS (R13)(AX*4), Z24
	VFMADD231PS Z30, Z24, Z8
	VFMADD231PS Z31, Z24, Z9
	VBROADCASTSS (R14)(AX*4), Z25
	VFMADD231PS Z30, Z25, Z10
	VFMADD231PS Z31, Z25, Z11
	ADDQ $128, BX
	INCQ AX
	CMPQ AX, R8
	JLT  value6
	VMOVUPS Z0, 0(DI)
	VMOVUPS Z1, 64(DI)
	VMOVUPS Z2, 128(DI)
	VMOVUPS Z3, 192(DI)
	VMOVUPS Z4, 256(DI)
	VMOVUPS Z5, 320(DI)
	VMOVUPS Z6, 384(DI)
	VMOVUPS Z7, 448(DI)
	VMOVUPS Z8, 512(DI)
	VMOVUPS Z9, 576(DI)
	VMOVUPS Z10, 640(DI)
	VMOVUPS Z11, 704(DI)
	ADDQ $768, DI
	LEAQ (R14)(R12*1), SI
	SUBQ $6, CX
	JMP  six

three:
	CMPQ CX, $3
	JLT  one
	LEAQ (SI)(R12*1), R9
	LEAQ (SI)(R12*2), R10
	VPXORD Z0, Z0, Z0
	VPXORD Z1, Z1, Z1
	VPXORD Z2, Z2, Z2
	VPXORD Z3, Z3, Z3
	VPXORD Z4, Z4, Z4
	VPXORD Z5, Z5, Z5
	MOVQ DX, BX
	XORQ AX, AX

value3:
	VMOVUPS (BX), Z30
	VMOVUPS 64(BX), Z31
	VBROADCASTSS (SI)(AX*4), Z20
	VFMADD231PS Z30, Z20, Z0
	VFMADD231PS Z31, Z20, Z1
	VBROADCASTSS (R9)(AX*4), Z21
	VFMADD231PS Z30, Z21, Z2
	VFMADD231PS Z31, Z21, Z3
	VBROADCASTSS (R10)(AX*4), Z22
	VFMADD231PS Z30, Z22, Z4
	VFMADD231PS Z31, Z22, Z5
	ADDQ $128, BX
	INCQ AX
	CMPQ AX, R8
	JLT  value3
	VMOVUPS Z0, 0(DI)
	VMOVUPS Z1, 64(DI)
	VMOVUPS Z2, 128(DI)
	VMOVUPS Z3, 192(DI)
	VMOVUPS Z4, 256(DI)
	VMOVUPS Z5, 320(DI)
	ADDQ $384, DI
	LEAQ (R10)(R12*1), SI
	SUBQ $3, CX
	JMP  three

one:
	TESTQ CX, CX
	JZ   done
	VPXORD Z0, Z0, Z0
	VPXORD Z1, Z1, Z1
	MOVQ DX, BX
	XORQ AX, AX

value1:
	VMOVUPS (BX), Z30
	VMOVUPS 64(BX), Z31
	VBROADCASTSS (SI)(AX*4), Z20
	VFMADD231PS Z30, Z20, Z0
	VFMADD231PS Z31, Z20, Z1
	ADDQ $128, BX
	INCQ AX
	CMPQ AX, R8
	JLT  value1
	VMOVUPS Z0, 0(DI)
	VMOVUPS Z1, 64(DI)
	ADDQ $128, DI
	LEAQ (SI)(R12*1), SI
	SUBQ $1, CX
	JMP  one

done:
	VZEROUPPER
	RET

// func softmaxAVX512(states, scores *float32, rows, n, stride, d int)
//
// As softmaxAVX2, in vectors of twice the size.
TEXT ·softmaxAVX512(SB), NOSPLIT, $0-48
	MOVQ states+0(FP), DI
	MOVQ scores+8(FP), SI
	MOVQ rows+16(FP), R10
	MOVQ n+24(FP), R9
	MOVQ stride+32(FP), R11
	MOVQ d+40(FP), R8

	// K1: the values of the last vector, n modulo 16 of them or all sixteen.
	DECQ R9
	MOVQ R9, CX
	ANDQ $15, CX
	MOVQ $2, AX
	SHLQ CX, AX
	DECQ AX
	KMOVW AX, K1
	MOVQ R9, CX
	SHRQ $4, CX
	ANDQ $1, CX // of the last tile, vectors before the last
	SHRQ $5, R9 // tiles before the last

row:
	VBROADCASTSS minusInf<>(SB), Z1
	VMOVAPS Z1, Z2
	VMOVAPS Z1, Z3
	MOVQ SI, BX
	MOVQ R9, AX

mostTile:
	TESTQ AX, AX
	JZ   mostLast
	VMAXPS (BX), Z1, Z1
	VMAXPS 64(BX), Z2, Z2
	ADDQ R11, BX
	DECQ AX
	JMP  mostTile

mostLast:
	TESTQ CX, CX
	JZ   mostRest
	VMAXPS (BX), Z1, Z1
	ADDQ $64, BX

mostRest:
	VMOVUPS (BX), K1, Z3
	VMAXPS Z2, Z1, Z1
	VMAXPS Z3, Z1, Z1
	HORIZONTAL(VMAXPS)
	VMOVSS (DI), X4 // the old one
	VMAXSS X1, X4, X5
	VUCOMISS X4, X5
	JE   nextRow // or no number: then the sum is none either
	VMOVSS X5, (DI)
	VSUBSS X5, X4, X9
	VBROADCASTSS X9, Z9
	EXP512(Z9)
	VMULSS 4(DI), X9, X0
	VMOVSS X0, 4(DI)
	MOVQ R8, AX
	LEAQ 8(DI), BX

shrink:
	VMULPS (BX), Z9, Z0
	VMOVUPS Z0, (BX)
	ADDQ $64, BX
	SUBQ $16, AX
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
	VBROADCASTSS (DI), Z5
	VPXORD Z1, Z1, Z1 // sums of the weights
	MOVQ SI, BX
	MOVQ R9, AX

weighTile:
	TESTQ AX, AX
	JZ   weighLast
	VMOVUPS (BX), Z2
	VSUBPS Z5, Z2, Z2
	EXP512(Z2)
	VMOVUPS Z2, (BX)
	VADDPS Z2, Z1, Z1
	VMOVUPS 64(BX), Z3
	VSUBPS Z5, Z3, Z3
	EXP512(Z3)
	VMOVUPS Z3, 64(BX)
	VADDPS Z3, Z1, Z1
	ADDQ R11, BX
	DECQ AX
	JMP  weighTile

weighLast:
	TESTQ CX, CX
	JZ   weighRest
	VMOVUPS (BX), Z2
	VSUBPS Z5, Z2, Z2
	EXP512(Z2)
	VMOVUPS Z2, (BX)
	VADDPS Z2, Z1, Z1
	ADDQ $64, BX

weighRest:
	VMOVUPS (BX), Z2
	VSUBPS Z5, Z2, Z2
	EXP512(Z2)
	VMOVAPS.Z Z2, K1, Z2
	VMOVUPS Z2, (BX)
	VADDPS Z2, Z1, Z1
	HORIZONTAL(VADDPS)
	VADDSS 4(DI), X1, X1
	VMOVSS X1, 4(DI)
	LEAQ 8(DI)(R8*4), DI
	ADDQ $128, SI
	DECQ R10
	JNZ  weigh
	VZEROUPPER
	RET

// STATE64 loads 64 weighted values of a state at p, or with SAVE64 stores them. ADD64 adds the key's values in Z24 to Z27 to them, with the weight
// at byte off of R14 and AX.
#define STATE64(p, a, b, c, d) \
	VMOVUPS (p), a \
	VMOVUPS 64(p), b \
	VMOVUPS 128(p), c \
	VMOVUPS 192(p), d

#define SAVE64(p, a, b, c, d) \
	VMOVUPS a, (p) \
	VMOVUPS b, 64(p) \
	VMOVUPS c, 128(p) \
	VMOVUPS d, 192(p)

#define ADD64(off, weight, a, b, c, d) \
	VBROADCASTSS off(R14)(AX*4), weight \
	VFMADD231PS Z24, weight, a \
	VFMADD231PS Z25, weight, b \
	VFMADD231PS Z26, weight, c \
	VFMADD231PS Z27, weight, d

// func valuesAVX512(states, weights, v *float32, rows, n, stride, d int)
//
// 64 values a key, which six states share, or three: the query heads of one KV head, where one token asks.
TEXT ·valuesAVX512(SB), NOSPLIT, $0-56
	MOVQ states+0(FP), DI
	MOVQ weights+8(FP), SI
	MOVQ v+16(FP), DX
	MOVQ d+48(FP), R8
	ADDQ $8, DI
	LEAQ 8(R8*4), R13 // bytes a state
	LEAQ (R8*4), R9   // bytes a row of values

columns64:
	CMPQ R8, $64
	JLT  columns16
	MOVQ DI, R11
	MOVQ SI, R12
	MOVQ rows+24(FP), R10

six64:
	CMPQ R10, $6
	JLT  three64
	MOVQ R11, BX
	STATE64(BX, Z0, Z1, Z2, Z3)
	ADDQ R13, BX
	STATE64(BX, Z4, Z5, Z6, Z7)
	ADDQ R13, BX
	STATE64(BX, Z8, Z9, Z10, Z11)
	ADDQ R13, BX
	STATE64(BX, Z12, Z13, Z14, Z15)
	ADDQ R13, BX
	STATE64(BX, Z16, Z17, Z18, Z19)
	ADDQ R13, BX
	STATE64(BX, Z20, Z21, Z22, Z23)
	MOVQ DX, BX
	MOVQ R12, R14
	MOVQ n+32(FP), CX

tile6x64:
	MOVQ $32, R15
	CMPQ CX, R15
	CMOVQLT CX, R15
	XORQ AX, AX

key6x64:
	STATE64(BX, Z24, Z25, Z26, Z27)
	ADD64(0, Z28, Z0, Z1, Z2, Z3)
	ADD64(128, Z29, Z4, Z5, Z6, Z7)
	ADD64(256, Z30, Z8, Z9, Z10, Z11)
	ADD64(384, Z31, Z12, Z13, Z14, Z15)
	ADD64(512, Z28, Z16, Z17, Z18, Z19)
	ADD64(640, Z29, Z20, Z21, Z22, Z23)
	ADDQ R9, BX
	INCQ AX
	CMPQ AX, R15
	JLT  key6x64
	ADDQ stride+40(FP), R14
	SUBQ $32, CX
	JG   tile6x64
	SAVE64(R11, Z0, Z1, Z2, Z3)
	ADDQ R13, R11
	SAVE64(R11, Z4, Z5, Z6, Z7)
	ADDQ R13, R11
	SAVE64(R11, Z8, Z9, Z10, Z11)
	ADDQ R13, R11
	SAVE64(R11, Z12, Z13, Z14, Z15)
	ADDQ R13, R11
	SAVE64(R11, Z16, Z17, Z18, Z19)
	ADDQ R13, R11
	SAVE64(R11, Z20, Z21, Z22, Z23)
	ADDQ R13, R11
	ADDQ $768, R12
	SUBQ $6, R10
	JMP  six64

three64:
	CMPQ R10, $3
	JLT  one64
	MOVQ R11, BX
	STATE64(BX, Z0, Z1, Z2, Z3)
	ADDQ R13, BX
	STATE64(BX, Z4, Z5, Z6, Z7)
	ADDQ R13, BX
	STATE64(BX, Z8, Z9, Z10, Z11)
	MOVQ DX, BX
	MOVQ R12, R14
	MOVQ n+32(FP), CX

tile3x64:
	MOVQ $32, R15
	CMPQ CX, R15
	CMOVQLT CX, R15
	XORQ AX, AX

key3x64:
	STATE64(BX, Z24, Z25, Z26, Z27)
	ADD64(0, Z28, Z0, Z1, Z2, Z3)
	ADD64(128, Z29, Z4, Z5, Z6, Z7)
	ADD64(256, Z30, Z8, Z9, Z10, Z11)
	ADDQ R9, BX
	INCQ AX
	CMPQ AX, R15
	JLT  key3x64
	ADDQ stride+40(FP), R14
	SUBQ $32, CX
	JG   tile3x64
	SAVE64(R11, Z0, Z1, Z2, Z3)
	ADDQ R13, R11
	SAVE64(R11, Z4, Z5, Z6, Z7)
	ADDQ R13, R11
	SAVE64(R11, Z8, Z9, Z10, Z11)
	ADDQ R13, R11
	ADDQ $384, R12
	SUBQ $3, R10
	JMP  three64

one64:
	TESTQ R10, R10
	JZ   next64
	STATE64(R11, Z0, Z1, Z2, Z3)
	MOVQ DX, BX
	MOVQ R12, R14
	MOVQ n+32(FP), CX

tile1x64:
	MOVQ $32, R15
	CMPQ CX, R15
	CMOVQLT CX, R15
	XORQ AX, AX

key1x64:
	STATE64(BX, Z24, Z25, Z26, Z27)
	ADD64(0, Z28, Z0, Z1, Z2, Z3)
	ADDQ R9, BX
	INCQ AX
	CMPQ AX, R15
	JLT  key1x64
	ADDQ stride+40(FP), R14
	SUBQ $32, CX
	JG   tile1x64
	SAVE64(R11, Z0, Z1, Z2, Z3)
	ADDQ R13, R11
	ADDQ $128, R12
	DECQ R10
	JMP  one64

next64:
	ADDQ $256, DI
	ADDQ $256, DX
	SUBQ $64, R8
	JMP  columns64

columns16: // of heads that are no multiple of 64 values
	TESTQ R8, R8
	JZ   weighted
	MOVQ DI, R11
	MOVQ SI, R12
	MOVQ rows+24(FP), R10

row16:
	VMOVUPS (R11), Z0
	MOVQ DX, BX
	MOVQ R12, R14
	MOVQ n+32(FP), CX

tile16:
	MOVQ $32, R15
	CMPQ CX, R15
	CMOVQLT CX, R15
	XORQ AX, AX

key16:
	VBROADCASTSS (R14)(AX*4), Z28
	VFMADD231PS (BX), Z28, Z0
	ADDQ R9, BX
	INCQ AX
	CMPQ AX, R15
	JLT  key16
	ADDQ stride+40(FP), R14
	SUBQ $32, CX
	JG   tile16
	VMOVUPS Z0, (R11)
	ADDQ R13, R11
	ADDQ $128, R12
	DECQ R10
	JNZ  row16
	ADDQ $64, DI
	ADDQ $64, DX
	SUBQ $16, R8
	JMP  columns16

weighted:
	VZEROUPPER
	RET
