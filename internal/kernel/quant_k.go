package kernel

// The layouts of 256 values, the K-quants. Groups of 16 or 32 values have small integer scales (and minima) of their own, and a half d
// (and dmin) scales those: a value is (d·scale)·q, or (d·scale)·q - dmin·min.

// q2_kRow: 16 bytes of scale (low four bits) and min (high four bits) for 16 values each, 64 bytes of quants, d, dmin.
// Each 32 bytes of quants serve 128 values: two bits of each byte for the first 32 values, the next two for the next 32, and so on.
func q2_kRow(dst []float32, src []byte) {
	for ; len(dst) >= 256; dst, src = dst[256:], src[84:] {
		y, b := (*[256]float32)(dst), (*[84]byte)(src)
		d, dmin := half(b[80], b[81]), half(b[82], b[83])
		for group, s := range b[:16] {
			scale, min := d*float32(s&15), dmin*float32(s>>4)
			from, shift := group/8*32+group%2*16, group%8/2*2
			quants, out := (*[16]byte)(b[16+from:]), (*[16]float32)(y[group*16:])
			for l, q := range quants {
				out[l] = float32(scale*float32(q>>shift&3)) - min
			}
		}
	}
}

// q3_kRow: 32 bytes of third bits, 64 bytes of quants' low two bits (as in Q2_K), 12 bytes that pack 16 scales of six bits, d.
// Bit k of third-bit byte l belongs to value 32k+l, and a quant is offset by 4; a scale is offset by 32.
func q3_kRow(dst []float32, src []byte) {
	for ; len(dst) >= 256; dst, src = dst[256:], src[110:] {
		y, b := (*[256]float32)(dst), (*[110]byte)(src)
		d := half(b[108], b[109])
		packed := (*[12]byte)(b[96:])
		for group := range 16 {
			// Low four bits: a nibble of the first eight bytes; high two bits: a quarter of the last four.
			s := packed[group%8]>>(group/8*4)&15 | packed[8+group%4]>>(group/4*2)&3<<4
			scale := d * float32(int(s)-32)
			from, shift, bit := group/8*32+group%2*16, group%8/2*2, group/2
			thirds, quants, out := (*[16]byte)(b[group%2*16:]), (*[16]byte)(b[32+from:]), (*[16]float32)(y[group*16:])
			for l, q := range quants {
				out[l] = scale * float32(int(q>>shift&3)|int(thirds[l]>>bit&1<<2)-4)
			}
		}
	}
}

// q4_kRow: d, dmin, 12 bytes that pack 8 scales and 8 minima of six bits, for 32 values each, 128 bytes of quants.
// Each 32 bytes of quants serve 64 values: the low four bits the first 32, the high four the next 32.
func q4_kRow(dst []float32, src []byte) {
	for ; len(dst) >= 256; dst, src = dst[256:], src[144:] {
		y, b := (*[256]float32)(dst), (*[144]byte)(src)
		d, dmin := half(b[0], b[1]), half(b[2], b[3])
		packed := (*[12]byte)(b[4:])
		for pair := range 4 {
			scale, min := scaleAndMin(packed, 2*pair)
			lowScale, lowMin := d*scale, dmin*min
			scale, min = scaleAndMin(packed, 2*pair+1)
			highScale, highMin := d*scale, dmin*min
			quants, out := (*[32]byte)(b[16+pair*32:]), (*[64]float32)(y[pair*64:])
			for l, q := range quants {
				out[l] = float32(lowScale*float32(q&15)) - lowMin
				out[l+32] = float32(highScale*float32(q>>4)) - highMin
			}
		}
	}
}

// q5_kRow: as Q4_K, with 32 bytes of fifth bits before the quants: bit k of byte l belongs to value 32k+l.
func q5_kRow(dst []float32, src []byte) {
	for ; len(dst) >= 256; dst, src = dst[256:], src[176:] {
		y, b := (*[256]float32)(dst), (*[176]byte)(src)
		d, dmin := half(b[0], b[1]), half(b[2], b[3])
		packed, fifths := (*[12]byte)(b[4:]), (*[32]byte)(b[16:])
		for pair := range 4 {
			scale, min := scaleAndMin(packed, 2*pair)
			lowScale, lowMin := d*scale, dmin*min
			scale, min = scaleAndMin(packed, 2*pair+1)
			highScale, highMin := d*scale, dmin*min
			quants, out := (*[32]byte)(b[48+pair*32:]), (*[64]float32)(y[pair*64:])
			for l, q := range quants {
				fifth := fifths[l] >> (2 * pair)
				out[l] = float32(lowScale*float32(q&15|fifth&1<<4)) - lowMin
				out[l+32] = float32(highScale*float32(q>>4|fifth>>1&1<<4)) - highMin
			}
		}
	}
}

// q6_kRow: 128 bytes of quants' low four bits, 64 bytes of their high two, 16 signed bytes of scales for 16 values each, d.
// Each half of 128 values takes 64 of the low bytes (low nibbles the first 64 values, high nibbles the next) and 32 of the high
// (two bits for each 32 values, lowest first). A quant is offset by 32.
func q6_kRow(dst []float32, src []byte) {
	for ; len(dst) >= 256; dst, src = dst[256:], src[210:] {
		y, b := (*[256]float32)(dst), (*[210]byte)(src)
		d := half(b[208], b[209])
		for group, s := range b[192:208] {
			scale := d * float32(int8(s))
			within := group % 8 // the group's place in its half
			low, lowShift := group/8*64+within%4*16, within/4*4
			high, highShift := group/8*32+within%2*16, within/2*2
			lows, highs, out := (*[16]byte)(b[low:]), (*[16]byte)(b[128+high:]), (*[16]float32)(y[group*16:])
			for l, q := range lows {
				out[l] = scale * float32(int(q>>lowShift&15)|int(highs[l]>>highShift&3<<4)-32)
			}
		}
	}
}

// scaleAndMin returns scale and min number i of the eight that Q4_K and Q5_K pack. The first four are the low six bits of
// bytes 0 … 3 and 4 … 7; the others have their low four bits in bytes 8 … 11 and their high two atop bytes 0 … 7.
func scaleAndMin(packed *[12]byte, i int) (scale, min float32) {
	if i < 4 {
		return float32(packed[i] & 63), float32(packed[i+4] & 63)
	}
	return float32(packed[i+4]&15 | packed[i-4]>>6<<4), float32(packed[i+4]>>4 | packed[i]>>6<<4)
}
