//go:build linux

package xdp

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// ethtoolRings is struct ethtool_ringparam.
type ethtoolRings struct {
	cmd                                 uint32
	rxMax, rxMiniMax, rxJumboMax, txMax uint32
	rx, rxMini, rxJumbo, tx             uint32
}

// ethtoolChannels is struct ethtool_channels.
type ethtoolChannels struct {
	cmd                                 uint32
	rxMax, txMax, otherMax, combinedMax uint32
	rx, tx, other, combined             uint32
}

const (
	_ = -(unsafe.Sizeof(ethtoolRings{}) ^ 36)
	_ = -(unsafe.Sizeof(ethtoolChannels{}) ^ 36)
)

// ethtool asks the driver of an interface in the thread's namespace.
func ethtool(name string, arg unsafe.Pointer) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var req struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}
	copy(req.name[:unix.IFNAMSIZ-1], name)
	req.data = arg
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req)))
	if errno != 0 {
		return errno
	}
	return nil
}

func rings(name string) (r ethtoolRings, err error) {
	r.cmd = unix.ETHTOOL_GRINGPARAM
	err = ethtool(name, unsafe.Pointer(&r))
	return r, err
}

func channels(name string) (c ethtoolChannels, err error) {
	c.cmd = unix.ETHTOOL_GCHANNELS
	err = ethtool(name, unsafe.Pointer(&c))
	return c, err
}
