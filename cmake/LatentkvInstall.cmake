# What `cmake --install` puts where. The C library stands alone. The C++ client, component `client` of the package, comes
# as static libraries, since its interface has no stable ABI; whoever links it needs the packages that they are built on.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/latentkv)
set(include_dir ${CMAKE_INSTALL_INCLUDEDIR}/latentkv)

install(TARGETS latentkvd latentkv_command RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})

# Until 1.0 every minor version may break what was before.
set_target_properties(latentkv PROPERTIES VERSION ${PROJECT_VERSION}
  SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR})
install(TARGETS latentkv EXPORT latentkvTargets LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
  INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(FILES client/c/latentkv.h client/c/latentkv_codec.h DESTINATION ${include_dir})
install(EXPORT latentkvTargets NAMESPACE latentkv:: DESTINATION ${package_dir})

# C++ headers include each other from the root of the repository, here ${include_dir}; a consumer writes
# <latentkv/client/client.h>.
set(client_libraries core kernels codec proto transport client)
foreach(folder IN LISTS client_libraries)
  set_target_properties(latentkv_${folder} PROPERTIES EXPORT_NAME ${folder})
  install(TARGETS latentkv_${folder} EXPORT latentkvClientTargets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
    INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} ${include_dir})
endforeach()
set_target_properties(${LATENTKV_DEVICE_LIBRARY} PROPERTIES EXPORT_NAME kernels_device)
set_target_properties(${LATENTKV_RANK_LINK_LIBRARY} PROPERTIES EXPORT_NAME transport_ranks)
install(TARGETS ${LATENTKV_DEVICE_LIBRARY} ${LATENTKV_RANK_LINK_LIBRARY} EXPORT latentkvClientTargets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
file(GLOB core_headers CONFIGURE_DEPENDS core/*.h)
install(FILES ${core_headers} DESTINATION ${include_dir}/core)
install(FILES kernels/pages.h DESTINATION ${include_dir}/kernels)
install(FILES client/client.h DESTINATION ${include_dir}/client)
install(EXPORT latentkvClientTargets NAMESPACE latentkv:: DESTINATION ${package_dir})

configure_package_config_file(cmake/latentkvConfig.cmake.in ${CMAKE_BINARY_DIR}/latentkvConfig.cmake
  INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(${CMAKE_BINARY_DIR}/latentkvConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_BINARY_DIR}/latentkvConfig.cmake ${CMAKE_BINARY_DIR}/latentkvConfigVersion.cmake
  DESTINATION ${package_dir})
file(RELATIVE_PATH pkgconfig_to_prefix /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
configure_file(cmake/latentkv.pc.in ${CMAKE_BINARY_DIR}/latentkv.pc @ONLY)
install(FILES ${CMAKE_BINARY_DIR}/latentkv.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
