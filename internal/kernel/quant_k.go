package kernel

// The layouts of 256 values, the K-quants. Groups of 16 or 32 values have small integer scales (and minima) of their own, and a half d
// (and dmin) scales those: a value is (d·scale)·q, or (d·scale)·q - dmin·min.

// q2_kRow: 16 bytes of scale (low four bits) and min (high four bits) for 16 values each, 64 bytes of quants, d, dmin.
// Each 32 bytes of quants serve 128 values: the low two bits of each byte the first 32 values, the next two the next 32, and so on.
func q2_kRow(dst []float32, src []byte) {
	for ; len(dst) >= 256 && len(src) >= 84; dst, src = dst[256:], src[84:] {
		b := (*[84]byte)(src)
		d, dmin := half(b[80], b[81]), half(b[82], b[83])
		var scales, mins [16]float32
		for group, s := range b[:16] {
			scales[group], mins[group] = d*smallInts[s&15], dmin*smallInts[s>>4]
		}
		for part := range 4 { // 16 bytes of quants, whose values lie 32 apart
			first := part/2*8 + part%2 // group of the low two bits; those of the others follow in steps of two
			s, m := (*[7]float32)(scales[first:]), (*[7]float32)(mins[first:])
			y, quants := dst[first*16:], (*[16]byte)(b[16+part*16:])
			y0, y1, y2, y3 := (*[16]float32)(y), (*[16]float32)(y[32:]), (*[16]float32)(y[64:]), (*[16]float32)(y[96:])
			for l, q := range quants {
				y0[l] = float32(s[0]*smallInts[q&3]) - m[0]
				y1[l] = float32(s[2]*smallInts[q>>2&3]) - m[2]
				y2[l] = float32(s[4]*smallInts[q>>4&3]) - m[4]
				y3[l] = float32(s[6]*smallInts[q>>6]) - m[6]
			}
		}
	}
}

// q3_kRow: 32 bytes of third bits, 64 bytes of quants' low two bits (as in Q2_K), 12 bytes that pack 16 scales of six bits, d.
// Bit k of third-bit byte l belongs to value 32k+l, and a quant is offset by 4; a scale is offset by 32.
func q3_kRow(dst []float32, src []byte) {
	for ; len(dst) >= 256 && len(src) >= 110; dst, src = dst[256:], src[110:] {
		b := (*[110]byte)(src)
		d := half(b[108], b[109])
		packed := (*[12]byte)(b[96:])
		var scales [16]float32
		for group := range scales {
			// Low four bits: a nibble of the first eight bytes; high two bits: a quarter of the last four.
			s := packed[group%8]>>(group/8*4)&15 | packed[8+group%4]>>(group/4*2)&3<<4
			scales[group] = d * smallInts[s-32]
		}
		for part := range 4 {
			first := part/2*8 + part%2
			s := (*[7]float32)(scales[first:])
			y, quants, thirds := dst[first*16:], (*[16]byte)(b[32+part*16:]), (*[16]byte)(b[part%2*16:])
			y0, y1, y2, y3 := (*[16]float32)(y), (*[16]float32)(y[32:]), (*[16]float32)(y[64:]), (*[16]float32)(y[96:])
			shift := part / 2 * 4 // the third bits of this half of the values
			for l, q := range quants {
				third := thirds[l] >> (shift & 7)
				y0[l] = s[0] * smallInts[q&3|third<<2&4-4]
				y1[l] = s[2] * smallInts[q>>2&3|third<<1&4-4]
				y2[l] = s[4] * smallInts[q>>4&3|third&4-4]
				y3[l] = s[6] * smallInts[q>>6|third>>1&4-4]
			}
		}
	}
}

// q4_kRow: d, dmin, 12 bytes that pack 8 scales and 8 minima of six bits, for 32 values each, 128 bytes of quants.
// Each 32 bytes of quants serve 64 values: the low four bits the first 32, the high four the next 32.
func q4_kRow(dst []float32, src []byte) {
	for ; len(dst) >= 256 && len(src) >= 144; dst, src = dst[256:], src[144:] {
		b := (*[144]byte)(src)
		d, dmin := half(b[0], b[1]), half(b[2], b[3])
		packed := (*[12]byte)(b[4:])
		for pair := range 4 {
			s0, m0 := scaleAndMin(packed, 2*pair)
			s1, m1 := scaleAndMin(packed, 2*pair+1)
			s0, m0, s1, m1 = d*s0, dmin*m0, d*s1, dmin*m1
			y, quants := dst[pair*64:], (*[32]byte)(b[16+pair*32:])
			low, high := (*[32]float32)(y), (*[32]float32)(y[32:])
			for l, q := range quants {
				low[l] = float32(s0*smallInts[q&15]) - m0
				high[l] = float32(s1*smallInts[q>>4]) - m1
			}
		}
	}
}

// q5_kRow: as Q4_K, with 32 bytes of fifth bits before the quants: bit k of byte l belongs to value 32k+l.
func q5_kRow(dst []float32, src []byte) {
	for ; len(dst) >= 256 && len(src) >= 176; dst, src = dst[256:], src[176:] {
		b := (*[176]byte)(src)
		d, dmin := half(b[0], b[1]), half(b[2], b[3])
		packed, fifths := (*[12]byte)(b[4:]), (*[32]byte)(b[16:])
		for pair := range 4 {
			s0, m0 := scaleAndMin(packed, 2*pair)
			s1, m1 := scaleAndMin(packed, 2*pair+1)
			s0, m0, s1, m1 = d*s0, dmin*m0, d*s1, dmin*m1
			y, quants := dst[pair*64:], (*[32]byte)(b[48+pair*32:])
			low, high := (*[32]float32)(y), (*[32]float32)(y[32:])
			for l, q := range quants {
				fifth := fifths[l] >> (2 * pair & 7)
				low[l] = float32(s0*smallInts[q&15|fifth<<4&16]) - m0
				high[l] = float32(s1*smallInts[q>>4|fifth<<3&16]) - m1
			}
		}
	}
}

// q6_kRow: 128 bytes of quants' low four bits, 64 bytes of their high two, 16 signed bytes of scales for 16 values each, d.
// Each half of 128 values takes 64 of the low bytes (low nibbles the first 64 values, high nibbles the next) and 32 of the high
// (two bits for each 32 values, lowest first). A quant is offset by 32.
func q6_kRow(dst []float32, src []byte) {
	for ; len(dst) >= 256 && len(src) >= 210; dst, src = dst[256:], src[210:] {
		b := (*[210]byte)(src)
		d := half(b[208], b[209])
		for part := range 4 { // 16 bytes of high bits, whose values lie 32 apart
			first := part/2*8 + part%2
			scales := (*[7]byte)(b[192+first:])
			s0, s1, s2, s3 := d*smallInts[scales[0]], d*smallInts[scales[2]], d*smallInts[scales[4]], d*smallInts[scales[6]]
			lows := b[part/2*64+part%2*16:]
			lows0, lows1, highs := (*[16]byte)(lows), (*[16]byte)(lows[32:]), (*[16]byte)(b[128+part*16:])
			y := dst[first*16:]
			y0, y1, y2, y3 := (*[16]float32)(y), (*[16]float32)(y[32:]), (*[16]float32)(y[64:]), (*[16]float32)(y[96:])
			for l, high := range highs {
				y0[l] = s0 * smallInts[lows0[l]&15|high<<4&48-32]
				y1[l] = s1 * smallInts[lows1[l]&15|high<<2&48-32]
				y2[l] = s2 * smallInts[lows0[l]>>4|high&48-32]
				y3[l] = s3 * smallInts[lows1[l]>>4|high>>2&48-32]
			}
		}
	}
}

// scaleAndMin returns scale and min number i of the eight that Q4_K and Q5_K pack. The first four are the low six bits of
// bytes 0 … 3 and 4 … 7; the others have their low four bits in bytes 8 … 11 and their high two atop bytes 0 … 7.
func scaleAndMin(packed *[12]byte, i int) (scale, min float32) {
	if i < 4 {
		return smallInts[packed[i]&63], smallInts[packed[i+4]&63]
	}
	return smallInts[packed[i+4]&15|packed[i-4]>>6<<4], smallInts[packed[i+4]>>4|packed[i]>>6<<4]
}
