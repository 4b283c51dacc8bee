"""Runs the AVX-512 kernels in an emulator, for processors that lack it: `python bochs.py BOCHS KERNEL [all|few]`.

BOCHS is the emulator, built with `configure --enable-cpu-level=6 --enable-x86-64 --enable-avx --enable-evex
--with-nogui` (https://bochs.sourceforge.io); KERNEL a Linux kernel for x86-64, such as /boot/vmlinuz-*. Debian's
packages isolinux, syslinux-common, genisoimage, cpio and bochsbios (BIOS=folder for another place) are needed as well.

sanitize.cpp is linked statically and becomes the only program of a machine without a disk. What it prints, and its exit
status, come through a serial line. `few` takes some ten minutes.
"""

import gzip
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["SET"] = "avx512"  # before sanitize is imported, which reads it

from sanitize import CXX, FLAGS, NATIVE, PROGRAM, objects

BIOS = Path(os.environ.get("BIOS", "/usr/share/bochs"))
LOADER = Path("/usr/lib/ISOLINUX/isolinux.bin"), Path("/usr/lib/syslinux/modules/bios/ldlinux.c32")
MENU = """default check
prompt 0
label check
 kernel /kernel
 append initrd=/initrd console=ttyS0 panic=-1 nokaslr noapic nosmp quiet
"""
INIT = r"""
#include <stdio.h>
#include <sys/reboot.h>
#include <sys/wait.h>
#include <unistd.h>
int main(void) {
  int status;
  if (!fork()) execl("/check", "check", SIZES, (char*)0);
  wait(&status);
  printf("status %d\n", WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
  fflush(stdout);
  sleep(3);
  reboot(RB_POWER_OFF);
}
"""
MACHINE = """config_interface: textconfig
display_library: nogui
megs: 512
cpu: model=corei7_skylake_x, ips=50000000
romimage: file={bios}/BIOS-bochs-latest
vgaromimage: file={bios}/VGABIOS-lgpl-latest
ata0-master: type=cdrom, path={folder}/boot.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev={folder}/serial
log: {folder}/log
"""


def build_image(folder: Path, kernel: Path, sizes: str) -> None:
    """Makes boot.iso: the kernel, and the check as the only program."""
    (folder / "root/dev").mkdir(parents=True)
    (folder / "iso").mkdir()
    (folder / "init.c").write_text(INIT)
    check = [*CXX, *FLAGS, "-O2", f"-I{NATIVE}", PROGRAM, *objects(folder / "built", ("-O2",))]
    subprocess.run([*check, "-static", "-pthread", "-o", folder / "root/check"], check=True)
    init = ["cc", "-static", f'-DSIZES="{sizes}"', folder / "init.c", "-o", folder / "root/init"]
    subprocess.run(init, check=True)
    subprocess.run(["mknod", folder / "root/dev/console", "c", "5", "1"], check=True)  # needs root
    names = "\n".join(str(path.relative_to(folder / "root")) for path in (folder / "root").rglob("*"))
    archive = ["cpio", "-o", "-H", "newc", "--quiet"]
    packed = subprocess.run(archive, cwd=folder / "root", input=names.encode(), stdout=subprocess.PIPE, check=True)
    (folder / "iso/initrd").write_bytes(gzip.compress(packed.stdout, 1))
    (folder / "iso/isolinux.cfg").write_text(MENU)
    for source in LOADER:
        shutil.copy(source, folder / "iso")
    shutil.copy(kernel, folder / "iso/kernel")
    boot = ["-b", "isolinux.bin", "-c", "boot.cat", "-no-emul-boot", "-boot-load-size", "4", "-boot-info-table"]
    subprocess.run(["genisoimage", "-quiet", "-o", folder / "boot.iso", *boot, folder / "iso"], check=True)


def main(bochs: str, kernel: str, sizes: str = "few") -> int:
    """Runs the check, prints what it says, and returns its status."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build_image(folder, Path(kernel), sizes)
        (folder / "machine").write_text(MACHINE.format(folder=folder, bios=BIOS))
        subprocess.run([bochs, "-q", "-f", folder / "machine"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        said = (folder / "serial").read_text(errors="replace")
    print(said)
    found = re.search(r"^status (\d+)", said, re.MULTILINE)
    return int(found[1]) if found else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
