// Package wantest lets a test's binary be the program of a box of links too.
package wantest

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"testing"

	"github.com/bermedge/berm/test/rig/wan"
)

// arg, as the first argument, makes the binary a box.
const arg = "wan"

// Main is a package's TestMain: it runs the tests, or the box if the binary was started as one.
func Main(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == arg {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		if err := wan.Act(ctx, os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// Start starts a box with this binary as its program.
func Start(t testing.TB, box *wan.Box) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := box.Start(t.Context(), self, arg); err != nil {
		t.Fatal(err)
	}
}
