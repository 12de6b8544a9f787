package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/vishvananda/netlink"
)

// packetTests is the test binary of bpf in the machine.
const packetTests = "/packets"

// packets runs the tests of bpf that the kernel's command line names.
func packets(ctx context.Context) error {
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	run := ""
	for _, arg := range os.Args[1:] {
		if v, ok := strings.CutPrefix(arg, "checks="); ok {
			run = v
		}
	}
	if run == "" {
		return errors.New("the command line names no test (checks=…)")
	}
	cmd := exec.CommandContext(ctx, packetTests, "-test.v", "-test.run", run)
	cmd.Env = append(os.Environ(), "BERM_NO_SKIP=1", "GODEBUG=asyncpreemptoff=1", "TMPDIR=/run")
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	passed, failed := 0, []string(nil)
	var tail []string
	for lines := bufio.NewScanner(out); lines.Scan(); {
		line := lines.Text()
		switch {
		case strings.HasPrefix(line, "--- PASS:"):
			passed++
			fmt.Println("    " + strings.TrimPrefix(line, "--- "))
		case strings.Contains(line, "--- FAIL:"), strings.Contains(line, "--- SKIP:"):
			failed = append(failed, line)
		}
		if !strings.HasPrefix(line, "=== ") && !strings.Contains(line, "--- PASS:") {
			tail = append(tail, line)
		}
	}
	err = cmd.Wait()
	if err == nil && passed != 1+strings.Count(run, "|") {
		err = fmt.Errorf("%d tests passed, want those of %s", passed, run)
	}
	if err != nil {
		return fmt.Errorf("%w; %q\n\t%s", err, failed, strings.Join(tail[max(0, len(tail)-60):], "\n\t"))
	}
	fmt.Printf("    %d packet tests passed\n", passed)
	return nil
}
