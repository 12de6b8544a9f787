package transport

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"strconv"
	"sync/atomic"

	"github.com/quic-go/quic-go"
	"golang.org/x/net/ipv4"

	"github.com/bermedge/berm/maps"
)

// MaxWorkers is how many sockets of QUIC an address may have.
const MaxWorkers = maps.Workers

// usualWorkers is how many it has at most where the file does not say.
const usualWorkers = 4

// Workers is how many sockets of QUIC an address is to have.
func (c Config) Workers() int {
	if c.QUICWorkers != 0 {
		return c.QUICWorkers
	}
	return min(runtime.GOMAXPROCS(0), usualWorkers)
}

// worker is one of an address's sockets of QUIC, which one goroutine reads. A connection stays with the worker that
// it began with: the kernel half sees from its IDs which that is.
type worker struct {
	udp  *net.UDPConn
	quic *quic.Transport
	in   *quic.EarlyListener
}

// Datagrams counts what each worker has read, at all addresses.
func (s *Server) Datagrams() (out []uint64) {
	for n := range s.workers {
		out = append(out, s.stats.Datagrams[n].Load())
	}
	return out
}

// bindWorkers binds the sockets of an address. There is one where the kernel half would not choose among them.
func (u *unit) bindWorkers(address string) error {
	if err := u.bindWorker(address); err != nil {
		return err
	}
	if u.s.workers == 1 {
		return nil
	}
	err := u.introduce(0)
	for n := 1; n < u.s.workers && err == nil; n++ {
		if err = u.bindWorker(address); err == nil {
			err = u.introduce(n)
		}
	}
	if err != nil {
		u.s.opts.Log.Warn("h3 has one worker here: the kernel half does not know the sockets", "address", u.key.address, "error", err)
		for _, w := range u.workers[1:] {
			_ = w.udp.Close() // nobody listens there
		}
		u.workers = u.workers[:1]
	}
	return nil
}

// bindWorker binds the next one's socket.
func (u *unit) bindWorker(address string) error {
	n := len(u.workers)
	c, err := u.s.heldUDP(u.key, n, address)
	if err != nil {
		return err
	}
	t := &quic.Transport{Conn: &countedUDP{c, ipv4.NewPacketConn(c), &u.s.stats.Datagrams[n]}, VerifySourceAddress: u.verifySource}
	if make := u.s.opts.ConnectionIDs; make != nil {
		t.ConnectionIDGenerator = make(n)
	}
	if u.s.opts.TokenKey != [32]byte{} {
		key := quic.TokenGeneratorKey(u.s.opts.TokenKey)
		t.TokenGeneratorKey = &key
	}
	if u.s.opts.ResetKey != [32]byte{} {
		key := quic.StatelessResetKey(u.s.opts.ResetKey)
		t.StatelessResetKey = &key
	}
	u.workers = append(u.workers, &worker{udp: c, quic: t})
	return nil
}

// introduce makes a worker's socket known before anybody reads it.
func (u *unit) introduce(n int) error {
	if u.s.opts.Introduce == nil {
		return errors.New("nobody chooses")
	}
	return u.workers[n].withSocket(func(at netip.AddrPort, fd int) error { return u.s.opts.Introduce(n, at, fd) })
}

// withSocket calls f with the socket and the address that it is bound to.
func (w *worker) withSocket(f func(at netip.AddrPort, fd int) error) error {
	raw, err := w.udp.SyscallConn()
	if err != nil {
		return err
	}
	return control(raw, func(fd int) error { return f(w.udp.LocalAddr().(*net.UDPAddr).AddrPort(), fd) })
}

func (w *worker) listen(t *tls.Config, c *quic.Config) (err error) {
	w.in, err = w.quic.ListenEarly(t, c)
	return err
}

// closeWorkers ends all, whatever they were at.
func (u *unit) closeWorkers() {
	for _, w := range u.workers {
		if w.in != nil {
			_ = w.in.Close()
			_ = w.quic.Close()
		}
		_ = w.udp.Close()
	}
}

// sizeBuffers asks for receive buffers that hold a burst, and says what to do when they got less.
func (u *unit) sizeBuffers() {
	got := 0
	for _, w := range u.workers {
		_ = w.udp.SetReadBuffer(udpBuffer) // best effort: what came of it is looked at below
		_ = w.udp.SetWriteBuffer(udpBuffer)
		got = receiveBuffer(w.udp)
	}
	if got > 0 && got < udpBuffer {
		u.s.opts.Log.Info("h3 bursts may be lost: the kernel bounds UDP buffers",
			"address", u.key.address, "bytes", got, "hint", fmt.Sprintf("sysctl -w net.core.rmem_max=%d net.core.wmem_max=%d", udpBuffer, udpBuffer))
	}
}

// udpName tells the sockets of an address's workers apart for who keeps them.
func udpName(worker int) string {
	if worker == 0 {
		return "udp"
	}
	return "udp" + strconv.Itoa(worker)
}

// countedUDP counts what is read. quic-go reads with ReadBatch where a connection has it, as it would by itself.
type countedUDP struct {
	*net.UDPConn
	batch     *ipv4.PacketConn
	datagrams *atomic.Uint64
}

// ReadBatch reads several datagrams.
func (c *countedUDP) ReadBatch(ms []ipv4.Message, flags int) (int, error) {
	n, err := c.batch.ReadBatch(ms, flags)
	c.datagrams.Add(uint64(max(n, 0)))
	return n, err
}
