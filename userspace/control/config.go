package control

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
)

// Config is the section admin.
type Config struct {
	Socket  string `yaml:"socket"`  // of the admin API
	Metrics string `yaml:"metrics"` // address of /metrics, /healthz and /readyz; "" for none
}

// Default is what an empty section means.
func Default() Config { return Config{Socket: DefaultSocket, Metrics: "127.0.0.1:9190"} }

// maxSocket is what fits a Unix socket's address.
const maxSocket = 107

// Validate reports everything wrong with the section.
func (c Config) Validate() error {
	var errs []error
	if !filepath.IsAbs(c.Socket) || len(c.Socket) > maxSocket {
		errs = append(errs, fmt.Errorf("socket: %q is no absolute path of at most %d bytes", c.Socket, maxSocket))
	}
	if c.Metrics != "" {
		host, port, err := net.SplitHostPort(c.Metrics)
		_, perr := strconv.ParseUint(port, 10, 16)
		_, aerr := netip.ParseAddr(host)
		if err != nil || perr != nil || host != "" && aerr != nil {
			errs = append(errs, fmt.Errorf("metrics: %q is no address with a port (write 127.0.0.1:9190, or \"\" for none)", c.Metrics))
		}
	}
	return errors.Join(errs...)
}
