package dictionary

import (
	"bytes"
	"runtime"
	"testing"

	"github.com/bermedge/berm/userspace/cache"
)

// What is charged for an encoder at work covers what it takes.
func TestEncoderCost(t *testing.T) {
	if raceEnabled {
		t.Log("the race detector's own memory would be counted")
		return
	}
	for _, size := range []int{10 << 10, 300 << 10, 2 << 20, maxSize} {
		d := &dict{content: bytes.Repeat([]byte("0123456789abcdef"), size/16)}
		content := bytes.Repeat([]byte("0123456789abcdeF"), size/16)
		window := windowFor(2 * size)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if _, err := frame(d, content, window); err != nil {
			t.Fatal(err)
		}
		runtime.ReadMemStats(&after)
		took := int64(after.TotalAlloc - before.TotalAlloc)
		t.Logf("%d bytes with a dictionary of as many: %d bytes allocated, %d charged", size, took, encoderCost(window, size))
		if took > encoderCost(window, size) {
			t.Errorf("%d bytes: %d allocated, more than the %d that are charged", size, took, encoderCost(window, size))
		}
	}
}

func BenchmarkEncode(b *testing.B) {
	for _, size := range []int{10 << 10, 100 << 10, 1 << 20} {
		b.Run(cache.Bytes(size).String(), func(b *testing.B) {
			d := &dict{content: bytes.Repeat([]byte("function of some text, "), size/23)}
			content := bytes.Repeat([]byte("function of other text, "), size/24)
			b.SetBytes(int64(len(content)))
			for b.Loop() {
				if _, err := frame(d, content, windowFor(2*size)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
