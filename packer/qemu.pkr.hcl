# Tries the way of the clouds' templates on this computer: boots a disk image under QEMU, applies the same playbook over SSH,
# cleans, and keeps the result.   packer build -var image=FILE -var ssh_key=FILE qemu.pkr.hcl

variable "image" {
  type        = string
  default     = "../build/image/cosmian_vm.img"
  description = "Raw disk image that boots by UEFI and lets ssh_key log in as root: `image/build --ssh-key FILE` makes one."
}

variable "ssh_key" {
  type        = string
  default     = ""
  description = "Private key to log in with."
}

variable "variables" {
  type        = string
  default     = "{}"
  description = "Variables of the playbook, as JSON."
}

variable "output" {
  type        = string
  default     = "../build/image/packer"
  description = "Folder that the new image is written into; it must not be there yet."
}

source "qemu" "vm" {
  accelerator          = "tcg"
  iso_url              = var.image
  iso_checksum         = "none"
  disk_image           = true
  format               = "raw"
  skip_resize_disk     = true
  output_directory     = var.output
  vm_name              = "cosmian_vm.img"
  headless             = true
  communicator         = "ssh"
  ssh_username         = "root"
  ssh_private_key_file = var.ssh_key
  ssh_timeout          = "10m"
  shutdown_command     = "systemctl poweroff"
  # Loopback only: by itself the builder binds SSH on all interfaces.
  qemuargs = [
    ["-machine", "q35"],
    ["-accel", "tcg,thread=multi,tb-size=256"],
    ["-cpu", "max"],
    ["-smp", "2"],
    ["-m", "1024"],
    ["-bios", "/usr/share/ovmf/OVMF.fd"],
    ["-drive", "file=${var.output}/cosmian_vm.img,format=raw,if=none,id=disk,cache=unsafe"],
    ["-device", "nvme,drive=disk,serial=cosmian-vm"],
    ["-netdev", "user,id=net,hostfwd=tcp:127.0.0.1:{{ .SSHHostPort }}-:22"],
    ["-device", "virtio-net-pci,netdev=net"],
  ]
}

build {
  sources = ["source.qemu.vm"]

  provisioner "ansible" {
    playbook_file    = "${path.root}/../image/ansible/playbook.yml"
    user             = "root"
    use_proxy        = false
    ansible_env_vars = ["ANSIBLE_CONFIG=${path.root}/../image/ansible/ansible.cfg", "ANSIBLE_HOST_KEY_CHECKING=False"]
    extra_arguments  = ["--extra-vars", var.variables]
  }

  provisioner "shell" {
    script          = "${path.root}/clean.sh"
    execute_command = "sh '{{ .Path }}' root"
    skip_clean      = true
  }
}
