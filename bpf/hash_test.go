package bpf_test

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"math/rand/v2"
	"net/netip"
	"testing"
)

// The hashes once more, written from the contract and not from the C code.

const (
	hashA = 0x9E3779B97F4A7C15
	hashB = 0xff51afd7ed558ccd
	hashC = 0xc4ceb9fe1a85ec53
)

func mix(h uint64) uint64 { return h ^ h>>32 }

func halves(a netip.Addr) (hi, lo uint64) {
	b := a.As16()
	return binary.BigEndian.Uint64(b[:]), binary.BigEndian.Uint64(b[8:])
}

func sourceOf(a netip.Addr) netip.Addr {
	if a.Is4() {
		return a
	}
	p, _ := a.Prefix(64)
	return p.Addr()
}

func vipHash(seed [2]uint64, a netip.Addr, port uint16, proto byte) uint64 {
	b := a.As16()
	hi, lo := binary.LittleEndian.Uint64(b[:]), binary.LittleEndian.Uint64(b[8:])
	h := mix((hi*hashB ^ lo ^ seed[0]) * hashA)
	return mix((h ^ uint64(port)<<8 ^ uint64(proto)) * hashA)
}

func sourceHash(seed [2]uint64, a netip.Addr) uint64 {
	n, lo := halves(a)
	if a.Is4() {
		n = lo & 0xffffffff
	}
	return mix((mix((n^seed[0])*hashB) ^ seed[1]) * hashA)
}

// prefixHash is the hash of a prefix's bits as a number.
func prefixHash(seed [2]uint64, a netip.Addr, bits int) uint64 {
	b := a.AsSlice()
	var n uint64
	for _, octet := range b[:bits/8] {
		n = n<<8 | uint64(octet)
	}
	return hashNumber(seed, n)
}

func hashNumber(seed [2]uint64, n uint64) uint64 {
	return mix((mix((n^seed[0])*hashB) ^ seed[1]) * hashA)
}

func networkHash(seed [2]uint64, asn uint32) uint64 { return hashNumber(seed, 1<<40|uint64(asn)) }

func networkShareHash(seed [2]uint64, asn uint32, aggregate uint64) uint64 {
	return hashNumber(seed, 2<<40|uint64(asn)<<8|aggregate>>56)
}

func flowHash(key [2]uint64, src, dst netip.AddrPort, proto byte) uint64 {
	ports := uint64(src.Port())<<24 | uint64(dst.Port())<<8 | uint64(proto)
	shi, slo := halves(src.Addr())
	dhi, dlo := halves(dst.Addr())
	if src.Addr().Is4() {
		return sip13(key, slo<<32|dlo&0xffffffff, ports|13<<56)
	}
	return sip13(key, shi, slo, dhi, dlo, ports|37<<56)
}

func flowTag(flow, secret uint64) uint16 { return max(uint16((flow^secret)*hashA>>49), 1) }

func chanceTag(flow, secret uint64) uint16 { return max(uint16((flow^secret)*hashB>>49), 1) | 0x8000 }

// hopped is the flow as tags see it after so many hops from site to site.
func hopped(flow uint64, hops int) uint64 { return flow ^ uint64(hops)*hashC }

// sip13 wants the words as SipHash pads them: the last byte of the last is the length.
func sip13(key [2]uint64, words ...uint64) uint64 {
	v := [4]uint64{key[0] ^ 0x736f6d6570736575, key[1] ^ 0x646f72616e646f6d, key[0] ^ 0x6c7967656e657261, key[1] ^ 0x7465646279746573}
	round := func() {
		v[0] += v[1]
		v[2] += v[3]
		v[1], v[3] = bits.RotateLeft64(v[1], 13)^v[0], bits.RotateLeft64(v[3], 16)^v[2]
		v[0] = bits.RotateLeft64(v[0], 32)
		v[2] += v[1]
		v[0] += v[3]
		v[1], v[3] = bits.RotateLeft64(v[1], 17)^v[2], bits.RotateLeft64(v[3], 21)^v[0]
		v[2] = bits.RotateLeft64(v[2], 32)
	}
	for _, w := range words {
		v[3] ^= w
		round()
		v[0] ^= w
	}
	v[2] ^= 0xff
	round()
	round()
	round()
	return v[0] ^ v[1] ^ v[2] ^ v[3]
}

// hashes is struct test_hashes.
type hashes struct {
	Src, Dst          [16]byte
	Sport, Dport      [2]byte
	Proto, Six        uint8
	_                 uint16
	VIP, Source, Flow uint64
	Row, Tag          uint32
	Chance, Hop       uint32
	Aggregate, Share  uint64
	Network, Part     uint64
}

func TestHashes(t *testing.T) {
	k := newKernel(t)
	r := rand.New(rand.NewPCG(1, 2))
	for range 1000 {
		src, dst := randomAddr(r), randomAddr(r)
		for src.Is4() != dst.Is4() {
			dst = randomAddr(r)
		}
		in := hashes{Src: src.As16(), Dst: dst.As16(), Proto: byte(r.Uint32())}
		sport, dport := uint16(r.Uint32()), uint16(r.Uint32())
		binary.BigEndian.PutUint16(in.Sport[:], sport)
		binary.BigEndian.PutUint16(in.Dport[:], dport)
		if src.Is6() {
			in.Six = 1
		}
		var b bytes.Buffer
		if err := binary.Write(&b, binary.LittleEndian, &in); err != nil {
			t.Fatal(err)
		}
		_, raw := run(t, k.TestHash, b.Bytes())
		var got hashes
		if err := binary.Read(bytes.NewReader(raw), binary.LittleEndian, &got); err != nil {
			t.Fatal(err)
		}
		want := in
		want.VIP = vipHash(baseConfig.Seed, dst, dport, in.Proto)
		want.Source = sourceHash(baseConfig.Seed, src)
		bits := [2]int{24, 32}
		if src.Is6() {
			bits = [2]int{48, 56}
		}
		want.Aggregate, want.Share = prefixHash(baseConfig.Seed, src, bits[0]), prefixHash(baseConfig.Seed, src, bits[1])
		asn := binary.LittleEndian.Uint32(in.Src[12:])
		want.Network, want.Part = networkHash(baseConfig.Seed, asn), networkShareHash(baseConfig.Seed, asn, want.Aggregate)
		want.Flow = flowHash(baseConfig.Secret, netip.AddrPortFrom(src, sport), netip.AddrPortFrom(dst, dport), in.Proto)
		want.Row = uint32(want.Flow & 0xffffffff * 65537 >> 32)
		want.Tag = uint32(flowTag(want.Flow, baseConfig.TagSecrets[0]))
		want.Chance = uint32(chanceTag(want.Flow, baseConfig.TagSecrets[0]))
		want.Hop = uint32(chanceTag(hopped(want.Flow, 2), baseConfig.TagSecrets[0]))
		if got != want {
			t.Fatalf("hashes of %s and %s\n got %+v\nwant %+v", src, dst, got, want)
		}
	}
}

func randomAddr(r *rand.Rand) netip.Addr {
	if r.IntN(2) == 0 {
		return netip.AddrFrom4([4]byte{byte(r.Uint32()), byte(r.Uint32()), byte(r.Uint32()), byte(r.Uint32())})
	}
	var a [16]byte
	binary.BigEndian.PutUint64(a[:], r.Uint64())
	binary.BigEndian.PutUint64(a[8:], r.Uint64())
	return netip.AddrFrom16(a)
}

// CPython hashes bytes with SipHash-1-3, and with PYTHONHASHSEED=0 under the zero key: these are
// its answers for bytes(range(16)) and bytes(range(40)).
func TestSipHashVectors(t *testing.T) {
	var words []uint64
	for i := range 5 {
		var b [8]byte
		for j := range b {
			b[j] = byte(8*i + j)
		}
		words = append(words, binary.LittleEndian.Uint64(b[:]))
	}
	if got := sip13([2]uint64{}, words[0], words[1], 16<<56); got != 0x8972188433a5c5b7 {
		t.Errorf("16 bytes: %#x", got)
	}
	if got := sip13([2]uint64{}, append(words, 40<<56)...); got != 0x95bc321ab41d8206 {
		t.Errorf("40 bytes: %#x", got)
	}
}
