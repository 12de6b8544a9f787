package doctor

import (
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What ethtool is asked, from linux/ethtool.h.
const (
	ethtoolGetTxChecksum = 0x16
	ethtoolGetFlags      = 0x25
	ethtoolGetGRO        = 0x2b
	ethtoolGetChannels   = 0x3c

	flagRxVLAN = 1 << 8
	flagLRO    = 1 << 15
)

// ethtoolWord is struct ethtool_value.
type ethtoolWord struct{ cmd, data uint32 }

// channels is struct ethtool_channels.
type channels struct {
	cmd                                 uint32
	maxRx, maxTx, maxOther, maxCombined uint32
	rx, tx, other, combined             uint32
}

// ethtool asks the driver of an interface; what is asked, and the answer, is one of the structs above.
func ethtool(name string, what unsafe.Pointer) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	req := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		pad  [16]byte
	}{data: what}
	copy(req.name[:unix.IFNAMSIZ-1], name)
	var pin runtime.Pinner
	pin.Pin(what)
	defer pin.Unpin()
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req))); errno != 0 {
		return fmt.Errorf("ask the driver of %s: %w", name, os.NewSyscallError("ethtool", errno))
	}
	return nil
}

func ethtoolGet(name string, cmd uint32) (uint32, error) {
	v := ethtoolWord{cmd: cmd}
	err := ethtool(name, unsafe.Pointer(&v))
	return v.data, err
}

func ethtoolFlags(name string) (uint32, error) { return ethtoolGet(name, ethtoolGetFlags) }

func getChannels(name string) (channels, error) {
	c := channels{cmd: ethtoolGetChannels}
	return c, ethtool(name, unsafe.Pointer(&c))
}

// driver is what runs an interface: virtio_net, veth, mlx5_core.
func driver(name string) string {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	info, err := unix.IoctlGetEthtoolDrvinfo(fd, name)
	if err != nil {
		return ""
	}
	return unix.ByteSliceToString(info.Driver[:])
}
