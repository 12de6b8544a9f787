package maps

import "encoding/binary"

// The round keys of AES-128 (FIPS 197, section 5.2), which crypto/aes has and does not give away: the
// kernel half decrypts with them.

const (
	aesWords    = 4  // of a key and of a block
	aesAllWords = 44 // of the keys of all rounds
)

// double multiplies by x in GF(2^8).
func double(b byte) byte {
	if b&0x80 != 0 {
		return b<<1 ^ 0x1b
	}
	return b << 1
}

func multiply(a, b byte) (p byte) {
	for ; b != 0; b >>= 1 {
		if b&1 != 0 {
			p ^= a
		}
		a = double(a)
	}
	return p
}

// substitute is the S-box: the inverse in GF(2^8), and an affine map.
func substitute(b byte) byte {
	inverse := byte(1) // b^254
	for range 254 {
		inverse = multiply(inverse, b)
	}
	out := byte(0x63)
	for i := range 5 {
		out ^= inverse<<i | inverse>>(8-i)
	}
	return out
}

func eachByte(word uint32, fn func(byte) byte) uint32 {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], word)
	for i := range b {
		b[i] = fn(b[i])
	}
	return binary.BigEndian.Uint32(b[:])
}

func aesEncryptKeys(key [16]byte) (w [aesAllWords]uint32) {
	for i := range aesWords {
		w[i] = binary.BigEndian.Uint32(key[4*i:])
	}
	constant := byte(1)
	for i := aesWords; i < aesAllWords; i++ {
		t := w[i-1]
		if i%aesWords == 0 {
			t = eachByte(t<<8|t>>24, substitute) ^ uint32(constant)<<24
			constant = double(constant)
		}
		w[i] = w[i-aesWords] ^ t
	}
	return w
}

// aesDecryptKeys are those of the equivalent inverse cipher (section 5.3.5), in the order of their use.
func aesDecryptKeys(key [16]byte) (w [aesAllWords]uint32) {
	encrypt := aesEncryptKeys(key)
	last := aesAllWords - aesWords
	for i := 0; i <= last; i += aesWords {
		for j := range aesWords {
			k := encrypt[last-i+j]
			if i != 0 && i != last {
				k = inverseMix(k)
			}
			w[i+j] = k
		}
	}
	return w
}

// inverseMix is InvMixColumns of one column.
func inverseMix(word uint32) uint32 {
	var in, out [4]byte
	binary.BigEndian.PutUint32(in[:], word)
	for i := range out {
		out[i] = multiply(in[i], 14) ^ multiply(in[(i+1)%4], 11) ^ multiply(in[(i+2)%4], 13) ^ multiply(in[(i+3)%4], 9)
	}
	return binary.BigEndian.Uint32(out[:])
}
