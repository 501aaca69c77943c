# An image of Cosmian VM for Google Cloud:   packer build -var os=ubuntu -var tee=sev gcp.pkr.hcl
# Credentials are Google's application default ones (gcloud auth application-default login), or GOOGLE_APPLICATION_CREDENTIALS.

variable "os" {
  type        = string
  default     = "ubuntu"
  description = "Operating system: ubuntu or rhel (9)."
  validation {
    condition     = contains(["ubuntu", "rhel"], var.os)
    error_message = "The variable os must be ubuntu or rhel: Google Cloud has no other that is supported."
  }
}

variable "ubuntu_version" {
  type        = string
  default     = "24.04"
  description = "With os=ubuntu: 24.04 or 22.04."
  validation {
    condition     = contains(["24.04", "22.04"], var.ubuntu_version)
    error_message = "The variable ubuntu_version must be 24.04 or 22.04."
  }
}

variable "tee" {
  type        = string
  default     = "sev"
  description = "Kind of confidential VM that the image is for: sev (AMD SEV-SNP) or tdx (Intel TDX)."
  validation {
    condition     = contains(["sev", "tdx"], var.tee)
    error_message = "The variable tee must be sev or tdx."
  }
}

variable "project_id" {
  type        = string
  default     = env("GOOGLE_CLOUD_PROJECT")
  description = "Google Cloud project that builds and keeps the image. Default: GOOGLE_CLOUD_PROJECT of the environment."
}

variable "zone" {
  type        = string
  default     = "europe-west4-a"
  description = "Where the image is built: a zone that has n2d (sev) or c3 (tdx) machines."
}

variable "network" {
  type        = string
  default     = "default"
  description = "Network of the machine that builds; it must let SSH in from this computer."
}

variable "owners" {
  type        = list(string)
  default     = []
  description = "Fingerprints of who gives the machines orders (cosmian_vm owner show); none: whoever claims a machine first."
}

variable "admin_key" {
  type        = string
  default     = ""
  description = "Public SSH keys that may log in as root, one a line; without one nobody can log in."
  validation {
    condition     = var.admin_key == "" || contains(["ssh", "ecdsa", "sk"], split("-", var.admin_key)[0])
    error_message = "The variable admin_key must be public SSH keys: the content of a file .pub."
  }
}

locals {
  # Google's answer names this project where none was given.
  project = coalesce(var.project_id, "set-google-cloud-project")
  family  = { "ubuntu 24.04" = "ubuntu-2404-lts-amd64", "ubuntu 22.04" = "ubuntu-2204-lts", "rhel" = "rhel-9" }
  system  = var.os == "ubuntu" ? "ubuntu ${var.ubuntu_version}" : var.os
  name    = "cosmian-vm-${replace(replace(local.system, " ", "-"), ".", "")}-${var.tee}"
}

# The machine that builds is of the family that confidential VMs are of, and need not be one itself. The image inherits the
# guest features (SEV_SNP_CAPABLE, TDX_CAPABLE, UEFI_COMPATIBLE, GVNIC) of Google's: README.md says how to look and how to add.
source "googlecompute" "vm" {
  project_id                  = local.project
  source_image_family         = local.family[local.system]
  source_image_project_id     = [var.os == "ubuntu" ? "ubuntu-os-cloud" : "rhel-cloud"]
  zone                        = var.zone
  network                     = var.network
  machine_type                = var.tee == "sev" ? "n2d-standard-4" : "c3-standard-4"
  disk_size                   = 20
  disk_type                   = "pd-balanced"
  enable_secure_boot          = true
  enable_vtpm                 = true
  enable_integrity_monitoring = true
  # No rights in the cloud for a machine that only installs packages, and no keys of the project's.
  disable_default_service_account = true
  metadata                        = { block-project-ssh-keys = "true", enable-oslogin = "FALSE" }
  ssh_username                    = "packer"
  image_name                      = "${local.name}-${formatdate("YYYYMMDDhhmmss", timestamp())}"
  image_family                    = local.name
  image_description               = "Cosmian VM: ${local.system}, ${var.tee}"
}

build {
  sources = ["source.googlecompute.vm"]

  provisioner "ansible" {
    playbook_file    = "${path.root}/../image/ansible/playbook.yml"
    user             = "packer"
    use_proxy        = false
    ansible_env_vars = ["ANSIBLE_CONFIG=${path.root}/../image/ansible/ansible.cfg", "ANSIBLE_HOST_KEY_CHECKING=False"]
    extra_arguments  = ["--extra-vars", jsonencode({ cosmian_vm_cloud = "gcp", cosmian_vm_admin_key = var.admin_key, cosmian_vm_owners = var.owners })]
  }

  provisioner "shell" {
    script          = "${path.root}/clean.sh"
    execute_command = "sudo sh '{{ .Path }}' packer"
    skip_clean      = true
  }
}
