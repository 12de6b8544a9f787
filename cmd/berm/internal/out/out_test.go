package out

import (
	"strings"
	"testing"
	"time"
)

func TestNumbers(t *testing.T) {
	for _, c := range []struct{ got, want string }{
		{Count(0), "0"},
		{Count(3), "3"},
		{Count(0.25), "0.2"},
		{Count(9.96), "10"},
		{Count(999), "999"},
		{Count(999.6), "1.00k"},
		{Count(1234), "1.23k"},
		{Count(123456), "123k"},
		{Count(9.99e6), "9.99M"},
		{Count(1e19), "10.0E"},
		{Count(-1500), "-1.50k"},
		{Bytes(0), "0 B"},
		{Bytes(1023), "1023 B"},
		{Bytes(1536), "1.50 KiB"},
		{Bytes(256 << 20), "256 MiB"},
		{Bytes(1023.2 * 1024), "1023 KiB"},
		{Bits(1250000), "10.0 Mbit/s"},
		{Bits(10), "80 bit/s"},
		{Duration(300 * time.Millisecond), "0.3s"},
		{Duration(42 * time.Second), "42s"},
		{Duration(310 * time.Second), "5m10s"},
		{Duration(76 * time.Hour), "3d4h"},
		{Duration(3*time.Hour + 5*time.Minute), "3h5m"},
	} {
		if c.got != c.want {
			t.Errorf("got %q, want %q", c.got, c.want)
		}
	}
}

func TestTableAlignsWithAndWithoutColour(t *testing.T) {
	rows := [][]Cell{{{"web", Plain}, {"5", Plain}, {"ok", Good}}, {{"dns", Plain}, {"1234", Bad}, {"", Plain}}}
	want := "NAME   PPS  STATE\nweb      5  ok\ndns   1234\n"
	var b strings.Builder
	(&Printer{W: &b}).Table([]string{"NAME", "PPS>", "STATE"}, rows)
	if b.String() != want {
		t.Errorf("got\n%swant\n%s", b.String(), want)
	}
	b.Reset()
	(&Printer{W: &b, Color: true}).Table([]string{"NAME", "PPS>", "STATE"}, rows)
	plain := strings.NewReplacer("\x1b[0m", "", "\x1b[2m", "", "\x1b[31m", "", "\x1b[32m", "").Replace(b.String())
	if plain != want {
		t.Errorf("colours move columns:\n%swant\n%s", plain, want)
	}
}
