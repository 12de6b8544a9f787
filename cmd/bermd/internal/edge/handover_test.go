package edge

import (
	"bufio"
	"errors"
	"net"
	"strings"
	"testing"
	"time"
)

func TestHear(t *testing.T) {
	for said, want := range map[string]string{
		"go\n": "", "": "ended before it served", "go": "ended before it served",
		"failed \"a\\nb\"\n": "a\nb", "failed a\n": "a", "went\n": `says "went", not "go"`,
	} {
		err := hear(bufio.NewReader(strings.NewReader(said)), sayGo)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", said, err, want)
		}
	}
	here, there := net.Pipe()
	defer here.Close()
	defer there.Close()
	if err := here.SetReadDeadline(time.Now().Add(-time.Second)); err != nil {
		t.Fatal(err)
	}
	if err := hear(bufio.NewReader(here), sayGo); err == nil || !strings.Contains(err.Error(), `does not say "go" in time`) {
		t.Errorf("nothing: %v", err)
	}
	var said strings.Builder
	explain(&said, errors.New("two\nlines"))
	if err := hear(bufio.NewReader(strings.NewReader(said.String())), sayReady); err == nil || err.Error() != "two\nlines" {
		t.Errorf("%q: %v", said.String(), err)
	}
}
