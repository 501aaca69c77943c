# An image of Cosmian VM for Azure:   packer build -var os=ubuntu -var tee=sev azure.pkr.hcl
# The subscription is ARM_SUBSCRIPTION_ID of the environment. Credentials: `az login`, or those of a service principal in
# ARM_CLIENT_ID, ARM_CLIENT_SECRET and ARM_TENANT_ID.

variable "os" {
  type        = string
  default     = "ubuntu"
  description = "Operating system: ubuntu or rhel (9)."
  validation {
    condition     = contains(["ubuntu", "rhel"], var.os)
    error_message = "The variable os must be ubuntu or rhel: Azure has no other that is supported."
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

variable "location" {
  type        = string
  default     = "westeurope"
  description = "Where the image is built and kept: a region that has DCasv5 (sev) or DCesv5 (tdx) machines."
}

variable "resource_group" {
  type        = string
  default     = "cosmian-vm"
  description = "Resource group of the image and of the gallery; it is there already."
}

variable "gallery" {
  type        = string
  default     = "cosmian_vm"
  description = "Gallery (Azure Compute Gallery) that the image is put into; README.md says how to make it."
}

variable "image_version" {
  type        = string
  default     = "2.0.0"
  description = "Version of the image in the gallery: three numbers."
  validation {
    condition     = length(split(".", var.image_version)) == 3
    error_message = "The variable image_version must be three numbers, 2.0.0 for instance."
  }
}

variable "subscription_id" {
  type        = string
  default     = env("ARM_SUBSCRIPTION_ID")
  description = "Subscription; default: ARM_SUBSCRIPTION_ID of the environment."
}

variable "client_id" {
  type        = string
  default     = env("ARM_CLIENT_ID")
  description = "Service principal; without it the login of `az login` is used."
}

variable "client_secret" {
  type        = string
  default     = env("ARM_CLIENT_SECRET")
  sensitive   = true
  description = "Its secret; only from the environment (ARM_CLIENT_SECRET), not from the command line."
}

variable "tenant_id" {
  type        = string
  default     = env("ARM_TENANT_ID")
  description = "Its tenant."
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
  # Azure's answer names this subscription where none was given.
  subscription = coalesce(var.subscription_id, "00000000-0000-0000-0000-000000000000")
  # Publisher, offer, SKU: each of the second generation, which boots by UEFI.
  image = {
    "ubuntu 24.04" = ["Canonical", "ubuntu-24_04-lts", "server"]
    "ubuntu 22.04" = ["Canonical", "0001-com-ubuntu-server-jammy", "22_04-lts-gen2"]
    "rhel"         = ["RedHat", "RHEL", "9-lvm-gen2"]
  }
  system = var.os == "ubuntu" ? "ubuntu ${var.ubuntu_version}" : var.os
  name   = "cosmian-vm-${replace(replace(local.system, " ", "-"), ".", "")}-${var.tee}"
}

# This builder knows no confidential machines: an ordinary one of the same processor builds. What makes its image one for
# confidential VMs is the definition in the gallery (SecurityType=ConfidentialVmSupported): README.md has the command.
source "azure-arm" "vm" {
  use_azure_cli_auth                = var.client_id == ""
  subscription_id                   = local.subscription
  client_id                         = var.client_id
  client_secret                     = var.client_secret
  tenant_id                         = var.tenant_id
  os_type                           = "Linux"
  image_publisher                   = local.image[local.system][0]
  image_offer                       = local.image[local.system][1]
  image_sku                         = local.image[local.system][2]
  location                          = var.location
  vm_size                           = var.tee == "sev" ? "Standard_D4as_v5" : "Standard_D4s_v5"
  ssh_username                      = "packer"
  managed_image_name                = "${local.name}-${var.image_version}"
  managed_image_resource_group_name = var.resource_group
  shared_image_gallery_destination {
    subscription        = local.subscription
    resource_group      = var.resource_group
    gallery_name        = var.gallery
    image_name          = local.name
    image_version       = var.image_version
    replication_regions = [var.location]
  }
}

build {
  sources = ["source.azure-arm.vm"]

  provisioner "ansible" {
    playbook_file    = "${path.root}/../image/ansible/playbook.yml"
    user             = "packer"
    use_proxy        = false
    ansible_env_vars = ["ANSIBLE_CONFIG=${path.root}/../image/ansible/ansible.cfg", "ANSIBLE_HOST_KEY_CHECKING=False"]
    extra_arguments  = ["--extra-vars", jsonencode({ cosmian_vm_cloud = "azure", cosmian_vm_admin_key = var.admin_key, cosmian_vm_owners = var.owners })]
  }

  provisioner "shell" {
    script          = "${path.root}/clean.sh"
    execute_command = "sudo sh '{{ .Path }}' packer"
    skip_clean      = true
  }
}
