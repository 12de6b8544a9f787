package rig

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Counters are the kernel's own per-namespace counters, by names such as "Tcp.PassiveOpens",
// "Udp.InDatagrams" and "Udp6InDatagrams": what the stack saw, whoever claims what.
type Counters map[string]uint64

// Counters reads the node's.
func (n *Node) Counters() (Counters, error) {
	c := Counters{}
	err := n.Do(func() error {
		for _, file := range []string{"snmp", "netstat"} {
			b, err := os.ReadFile("/proc/thread-self/net/" + file)
			if err != nil {
				return err
			}
			if err := c.parsePairs(string(b)); err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
		}
		b, err := os.ReadFile("/proc/thread-self/net/snmp6")
		if err != nil {
			return err
		}
		return c.parseList(string(b))
	})
	if err != nil {
		return nil, fmt.Errorf("counters of %s: %w", n.Name, err)
	}
	return c, nil
}

// Since returns how much each counter has grown since an earlier reading.
func (c Counters) Since(before Counters) Counters {
	d := Counters{}
	for k, v := range c {
		d[k] = v - before[k]
	}
	return d
}

// parsePairs reads a line of names followed by a line of values, each after the same "Group:".
func (c Counters) parsePairs(s string) error {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	for i := 0; i+1 < len(lines); i += 2 {
		names, values := strings.Fields(lines[i]), strings.Fields(lines[i+1])
		if len(names) != len(values) || names[0] != values[0] {
			return fmt.Errorf("line %q does not fit line %q", lines[i+1], lines[i])
		}
		for j := 1; j < len(names); j++ {
			v, err := strconv.ParseInt(values[j], 10, 64) // Tcp.MaxConn is -1
			if err != nil {
				return err
			}
			c[strings.TrimSuffix(names[0], ":")+"."+names[j]] = uint64(v)
		}
	}
	return nil
}

func (c Counters) parseList(s string) error {
	for line := range strings.Lines(s) {
		fields := strings.Fields(line)
		if len(fields) != 2 {
			continue
		}
		v, err := strconv.ParseUint(fields[1], 10, 64)
		if err != nil {
			return err
		}
		c[fields[0]] = v
	}
	return nil
}
